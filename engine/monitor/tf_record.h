// The bytes of TensorBoard's event files, without protobuf.
//
// A file is a sequence of records: length (8 bytes), masked CRC32C of the
// length, payload, masked CRC32C of the payload; all little-endian. A payload
// is one `Event` message of tensorboard/compat/proto/event.proto.
//
// Source: TensorFlow's documentation of TFRecord, "TFRecords format details";
// protobuf's "Encoding"; RFC 3720 appendix B.4 for CRC32C's test values.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace stowage::engine::monitor {

// Castagnoli's CRC of `bytes`.
std::uint32_t Crc32c(std::string_view bytes);

// What a record stores instead of the CRC itself.
std::uint32_t MaskedCrc32c(std::string_view bytes);

// `payload` framed as one record.
std::string TfRecord(std::string_view payload);

// Event{wall_time, file_version: "brain.Event:2"}: a file's first record.
std::string VersionEvent(double wall_time);

// Event{wall_time, step, summary{value{tag, simple_value}}}.
std::string ScalarEvent(double wall_time, std::int64_t step,
                        std::string_view tag, float value);

}  // namespace stowage::engine::monitor
