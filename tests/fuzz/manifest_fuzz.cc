// The records on NVMe: manifests, job files and the job's own record in them.
//
// Input: a byte of choices, then a record. With bit 1 the record is given a
// right length and checksum first, because no fuzzer guesses a CRC-32C and the
// code behind that check must hold all the same: a disk's other users can
// write a proper checksum.

#include <cstring>
#include <span>

#include "common/layout.h"
#include "proto/job_record_codec.h"
#include "storage/nvme/crc32c.h"
#include "storage/nvme/manifest.h"
#include "tests/fuzz/fuzz_input.h"

namespace stowage::storage {
namespace {

constexpr std::size_t kHeaderBytes = 24;  // FORMAT.md, "Records"

std::string Seal(std::string record, const char* magic) {
  if (record.size() < kHeaderBytes) record.resize(kHeaderBytes);
  const std::uint32_t version = kFormatVersion;
  const std::uint64_t body = record.size() - kHeaderBytes;
  std::memcpy(record.data(), magic, 8);
  std::memcpy(record.data() + 8, &version, sizeof(version));
  std::memcpy(record.data() + 16, &body, sizeof(body));
  const std::uint32_t sum =
      Crc32c(std::as_bytes(std::span<const char>(record).subspan(16)));
  std::memcpy(record.data() + 12, &sum, sizeof(sum));
  return record;
}

void OneManifest(const std::string& record) {
  const auto manifest = DecodeManifest(record);
  if (!manifest.ok()) return;
  const std::string once = EncodeManifest(*manifest);
  const auto again = DecodeManifest(once);
  STOWAGE_FUZZ_CHECK(again.ok(), again.status().ToString());
  STOWAGE_FUZZ_CHECK(EncodeManifest(*again) == once, "another came back");
}

void OneJobFile(const std::string& record) {
  const auto job = DecodeJobFile(record);
  if (!job.ok()) return;
  const std::string once = EncodeJobFile(*job);
  const auto again = DecodeJobFile(once);
  STOWAGE_FUZZ_CHECK(again.ok(), again.status().ToString());
  STOWAGE_FUZZ_CHECK(EncodeJobFile(*again) == once, "another came back");
  // As a server does that has a gigabyte.
  (void)Layout::Create(job->layout, {.elems_max = std::int64_t{1} << 36});
  (void)proto::DecodeJobRecord(job->job_record);
}

}  // namespace
}  // namespace stowage::storage

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  using namespace stowage::storage;  // NOLINT(google-build-using-namespace)
  stowage::fuzz::Input input(data, size);
  const auto choice = input.Get<std::uint8_t>();
  std::string record = input.Rest();
  if ((choice & 1) == 0) {
    OneManifest((choice & 2) != 0 ? Seal(std::move(record), "STOWMAN\n")
                                  : record);
  } else {
    OneJobFile((choice & 2) != 0 ? Seal(std::move(record), "STOWJOB\n")
                                 : record);
  }
  return 0;
}
