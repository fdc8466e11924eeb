"""Two hosts on one machine: network namespaces with a cable between them, a
stowd in each, ranks started as torchrun would start them."""

import json
import os
import subprocess

import processes as p


def available():
    """Why namespaces cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        subprocess.run(["ip", "netns", "add", "stowage-probe"], check=True,
                       capture_output=True)
        subprocess.run(["ip", "netns", "del", "stowage-probe"], check=True,
                       capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"ip netns: {error}"
    return ""


def ip(*args, check=True):
    return subprocess.run(["ip", *args], check=check, capture_output=True,
                          text=True)


class Hosts:
    """Hosts 0 and 1 at 10.77.0.1 and 10.77.0.2."""

    def __init__(self):
        # A name of this test's own: several may run beside each other.
        self.names = [f"stow{os.getpid() % 100000}-{h}" for h in (0, 1)]
        self.cables = [f"sv{os.getpid() % 100000}{h}" for h in "ab"]

    def __enter__(self):
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.cables[0], "type", "veth", "peer", "name",
           self.cables[1])
        for h in (0, 1):
            ip("link", "set", self.cables[h], "netns", self.names[h])
            self.ip(h, "addr", "add", f"10.77.0.{h + 1}/24", "dev",
                    self.cables[h])
            self.ip(h, "link", "set", "lo", "up")
            self.ip(h, "link", "set", self.cables[h], "up")
        return self

    def __exit__(self, *_):
        for name in self.names:
            ip("netns", "del", name, check=False)

    def ip(self, host, *args):
        return ip("-n", self.names[host], *args)

    def inside(self, host):
        return ["ip", "netns", "exec", self.names[host]]

    def cut(self):
        self.ip(1, "link", "set", self.cables[1], "down")

    def mend(self):
        self.ip(1, "link", "set", self.cables[1], "up")

    def sent_bytes(self, host):
        """What the host has sent over the cable since it is there."""
        lines = self.ip(host, "-s", "link", "show", self.cables[host]).stdout
        return int(lines.splitlines()[-1].split()[0])

    def environment(self, host, rank, ranks_of_host=2, port=29511):
        return {**os.environ,
                "RANK": str(host * ranks_of_host + rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(2 * ranks_of_host),
                "LOCAL_WORLD_SIZE": str(ranks_of_host),
                "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": self.cables[host]}


class Ranks:
    """The four ranks of one run, each with a log of its own; `config` is one
    file, or a list with one for each host."""

    def __init__(self, hosts, folder, config, servers, *args, port=29511,
                 extra_env=None, hide_segments=()):
        """`hide_segments`: hosts that do not see the folder of segments, as on
        a machine of their own."""
        self.logs = []
        self.processes = []
        for host in (0, 1):
            for rank in (0, 1):
                log = folder.file(f"rank{host}{rank}.log")
                self.logs.append(log)
                env = hosts.environment(host, rank, port=port)
                env.update((extra_env or {}).get((host, rank), {}))
                server = (["--server", servers[host].address]
                          if servers else [])
                hide = ["unshare", "--mount", "sh", "-c",
                        f"mount -t tmpfs none {folder.shm} && exec \"$@\"",
                        "sh"] if host in hide_segments else []
                with open(log, "w") as out:
                    self.processes.append(subprocess.Popen(
                        hosts.inside(host) + hide +
                        p.train_command(
                            config[host] if isinstance(config, list)
                            else config, folder.file("text"), *p.TINY,
                            *server, *args),
                        stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                        env=env))

    def wait(self, timeout):
        return [q.wait(timeout=timeout) for q in self.processes]

    def kill(self):
        for q in self.processes:
            if q.poll() is None:
                q.kill()
        for q in self.processes:
            q.wait(timeout=30)

    def text(self):
        return "\n".join(f"--- {log}\n{p.read(log)}" for log in self.logs)


class NodeServer(p.Stowd):
    """A host's stowd, in its namespace, in a folder of its own."""

    def __init__(self, hosts, host, folder, *args, address=None):
        sub = folder.file(f"host{host}")
        os.makedirs(sub, mode=0o700, exist_ok=True)
        self.folder = folder
        self.address = address or f"unix:{sub}/stowd.sock"
        self.inside = hosts.inside(host)
        self.log = open(folder.file(f"stowd{host}.log"), "a")
        shm = os.path.join(folder.shm, f"host{host}")
        os.makedirs(shm, mode=0o700, exist_ok=True)
        self.command = hosts.inside(host) + [
            f"{p.BIN}/stowd", "--listen", self.address, "--shm-dir", shm, *args]
        self.start()

    def start(self):
        import time
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=self.log)
        for _ in range(500):
            if self.stowctl("info").returncode == 0:
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError("stowd did not start")

    def stowctl(self, *args):
        """As its own host would ask it."""
        return subprocess.run(
            [*self.inside, f"{p.BIN}/stowctl", "--server", self.address, *args],
            capture_output=True, text=True, timeout=60)

    def jobs(self):
        return json.loads(self.stowctl("jobs", "--json").stdout)
