#include "engine/config/json_text.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>

#include "engine/config/text.h"
#include "engine/config/utf8.h"

namespace stowage::engine::config {
namespace {

// One level of NestedJson(): names in order, each a leaf or an object.
struct Node {
  std::string name;
  std::string json;  // of a leaf
  std::vector<Node> children;
};

Node& Child(Node& parent, std::string_view name) {
  for (Node& child : parent.children) {
    if (child.name == name) return child;
  }
  parent.children.push_back(Node{std::string(name), {}, {}});
  return parent.children.back();
}

void Print(const Node& node, int depth, std::string& out) {
  if (!node.json.empty()) {
    out += node.json;
    return;
  }
  const std::string indent(static_cast<std::size_t>(depth) * 2, ' ');
  out += "{\n";
  for (std::size_t i = 0; i < node.children.size(); ++i) {
    Append(&out, indent, "  ", JsonString(node.children[i].name), ": ");
    Print(node.children[i], depth + 1, out);
    out += i + 1 < node.children.size() ? ",\n" : "\n";
  }
  Append(&out, indent, "}");
}

}  // namespace

std::string JsonString(std::string_view text) {
  std::string out = "\"";
  for (std::size_t i = 0; i < text.size();) {
    const char c = text[i];
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x80) {
      const std::size_t length = Utf8Length(text.substr(i));
      if (length == 0) {
        out += "\\ufffd";
        ++i;
      } else {
        out += text.substr(i, length);
        i += length;
      }
      continue;
    }
    ++i;
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (byte < 0x20 || byte == 0x7f) {
          constexpr char kHex[] = "0123456789abcdef";
          out += "\\u00";
          out += kHex[byte >> 4];
          out += kHex[byte & 15U];
        } else {
          out += c;
        }
    }
  }
  out += '"';
  return out;
}

std::string JsonNumber(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  if (std::fabs(value) < 1e15 && std::trunc(value) == value) {
    return Cat(static_cast<std::int64_t>(value));
  }
  return PythonRepr(value);
}

// Source: Python's documentation of repr() for floats: the shortest digits that
// read back, with an exponent below 1e-4 and from 1e16 on.
std::string PythonRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  std::array<char, 40> buffer{};
  const auto [end, error] =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                    std::chars_format::scientific);
  std::string_view text(buffer.data(),
                        static_cast<std::size_t>(end - buffer.data()));
  const std::size_t e = text.find('e');
  int exponent = 0;
  const bool minus = text[e + 1] == '-';
  std::from_chars(text.data() + e + 2, text.data() + text.size(), exponent);
  if (minus) exponent = -exponent;
  if (exponent < -4 || exponent >= 16) return std::string(text);

  std::string sign;
  std::string digits;
  for (const char c : text.substr(0, e)) {
    if (c == '-') {
      sign = "-";
    } else if (c != '.') {
      digits += c;
    }
  }
  if (exponent < 0) {
    return sign + "0." +
           std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  }
  const auto whole = static_cast<std::size_t>(exponent) + 1;
  if (digits.size() <= whole) {
    return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  }
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string NestedJson(const std::vector<JsonLeaf>& leaves) {
  Node root;
  for (const JsonLeaf& leaf : leaves) {
    Node* node = &root;
    for (const std::string_view part : Split(leaf.path, '.')) {
      node = &Child(*node, part);
    }
    node->json = leaf.json;
  }
  std::string out;
  Print(root, 0, out);
  out += '\n';
  return out;
}

}  // namespace stowage::engine::config
