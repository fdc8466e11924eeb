#include "engine/config/document.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "common/errno_status.h"
#include "common/status_macros.h"
#include "common/unique_fd.h"
#include "engine/config/json_reader.h"
#include "engine/config/json_text.h"
#include "engine/config/text.h"

namespace stowage::engine::config {
namespace {

constexpr std::size_t kShowBytesMax = 80;

void ShowInto(const Value& value, std::string& out) {
  if (out.size() > kShowBytesMax) return;
  switch (value.kind) {
    case Value::Kind::kNull:
      out += "null";
      break;
    case Value::Kind::kBool:
      out += value.boolean ? "true" : "false";
      break;
    case Value::Kind::kNumber:
      out += value.text;
      break;
    case Value::Kind::kString:
      out += JsonString(value.text);
      break;
    case Value::Kind::kArray: {
      const char* separator = "";
      out += '[';
      for (const Value& item : value.items) {
        out += separator;
        separator = ",";
        ShowInto(item, out);
        if (out.size() > kShowBytesMax) break;
      }
      out += ']';
      break;
    }
    case Value::Kind::kObject: {
      const char* separator = "";
      out += '{';
      for (const Member& member : value.members) {
        Append(&out, separator, JsonString(member.key), ":");
        separator = ",";
        ShowInto(member.value, out);
        if (out.size() > kShowBytesMax) break;
      }
      out += '}';
      break;
    }
  }
}

}  // namespace

const Member* Value::Find(std::string_view key) const {
  for (const Member& member : members) {
    if (member.key == key) return &member;
  }
  return nullptr;
}

const char* Value::KindName() const {
  switch (kind) {
    case Kind::kNull:
      return "null";
    case Kind::kBool:
      return "a boolean";
    case Kind::kNumber:
      return "a number";
    case Kind::kString:
      return "a string";
    case Kind::kArray:
      return "a list";
    case Kind::kObject:
      return "an object";
  }
  return "";
}

std::string Value::Show() const {
  std::string out;
  ShowInto(*this, out);
  if (out.size() > kShowBytesMax) {
    std::size_t end = kShowBytesMax;
    // Not inside a character of several bytes.
    while (end > 0 && (static_cast<unsigned char>(out[end]) & 0xC0U) == 0x80U) {
      --end;
    }
    out.resize(end);
    out += "...";
  }
  return out;
}

std::string Document::At(Position position) const {
  if (position.line == 0) return file;
  return Cat(file, ":", position.line, ":", position.column);
}

absl::StatusOr<Document> ParseConfig(std::string_view text, std::string file) {
  Document document;
  document.file = std::move(file);
  STOWAGE_ASSIGN_OR_RETURN(document.root, ParseJson(text, document.file));
  if (document.root.kind != Value::Kind::kObject) {
    return absl::InvalidArgumentError(
        Cat(document.At(document.root.position),
            ": expected an object { ... } as the whole "
            "configuration, found ",
            document.root.KindName()));
  }
  return document;
}

absl::StatusOr<Document> ReadConfigFile(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) {
    return ErrnoStatus(Cat("read configuration ", path));
  }
  struct stat info = {};
  if (::fstat(fd.get(), &info) != 0) {
    return ErrnoStatus(Cat("read configuration ", path));
  }
  if (S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(
        Cat("read configuration ", path, ": it is a folder, expected a file"));
  }
  std::string text;
  std::string buffer(std::size_t{64} * 1024, '\0');
  while (true) {
    const ssize_t got = ::read(fd.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return ErrnoStatus(Cat("read configuration ", path));
    }
    if (got == 0) break;
    text.append(buffer.data(), static_cast<std::size_t>(got));
    // ParseJson() says what is too long; do not read on for ever.
    if (static_cast<std::int64_t>(text.size()) > kTextBytesMax) break;
  }
  return ParseConfig(text, path);
}

}  // namespace stowage::engine::config
