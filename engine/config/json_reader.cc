#include "engine/config/json_reader.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <limits>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "common/status_macros.h"
#include "engine/config/json_text.h"
#include "engine/config/text.h"
#include "engine/config/utf8.h"

namespace stowage::engine::config {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

bool IsWordChar(char c) {
  return IsDigit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         c == '_';
}

class Parser {
 public:
  Parser(std::string_view text, std::string_view file)
      : text_(text), file_(file) {}

  absl::StatusOr<Value> Run() {
    if (static_cast<std::int64_t>(text_.size()) > kTextBytesMax) {
      return absl::InvalidArgumentError(
          Cat(file_, ": ", text_.size(), " bytes are more than the ",
              kTextBytesMax, " that a configuration may have"));
    }
    if (text_.substr(0, 3) == "\xEF\xBB\xBF") {  // byte order mark
      offset_ = 3;
      line_begin_ = 3;
    }
    STOWAGE_RETURN_IF_ERROR(SkipBlank());
    if (AtEnd()) return Error("expected a value, the text is empty");
    Value root;
    STOWAGE_RETURN_IF_ERROR(ParseValue(root, 0));
    STOWAGE_RETURN_IF_ERROR(SkipBlank());
    if (!AtEnd()) {
      return Error(Cat("expected the end of the text, found ", Found()));
    }
    return root;
  }

 private:
  bool AtEnd() const { return offset_ >= text_.size(); }
  char Peek(std::size_t ahead = 0) const {
    return offset_ + ahead < text_.size() ? text_[offset_ + ahead] : '\0';
  }
  void Advance() {
    if (text_[offset_] == '\n') {
      ++line_;
      line_begin_ = offset_ + 1;
    }
    ++offset_;
  }
  Position Here() const {
    return {line_, static_cast<int>(offset_ - line_begin_) + 1};
  }

  absl::Status ErrorAt(Position at, std::string_view message) const {
    return absl::InvalidArgumentError(
        Cat(file_, ":", at.line, ":", at.column, ": ", message));
  }
  absl::Status Error(std::string_view message) const {
    return ErrorAt(Here(), message);
  }

  // What stands here, for messages.
  std::string Found() const {
    if (AtEnd()) return "the end of the text";
    const char c = Peek();
    if (IsWordChar(c)) {
      std::size_t end = offset_;
      while (end < text_.size() && end - offset_ < 32 &&
             IsWordChar(text_[end])) {
        ++end;
      }
      return JsonString(text_.substr(offset_, end - offset_));
    }
    const std::size_t length = Utf8Length(text_.substr(offset_));
    if (length == 0) return "a byte that is not UTF-8";
    if (c == '"') return "a string";
    if (static_cast<unsigned char>(c) < 0x20 || c == '\x7f') {
      return "a control character";
    }
    return Cat("'", text_.substr(offset_, length), "'");
  }

  absl::Status SkipBlank() {
    while (!AtEnd()) {
      const char c = Peek();
      if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
        Advance();
      } else if (c == '#' || (c == '/' && Peek(1) == '/')) {
        while (!AtEnd() && Peek() != '\n') Advance();
      } else if (c == '/' && Peek(1) == '*') {
        const Position begin = Here();
        Advance();
        Advance();
        while (!AtEnd() && !(Peek() == '*' && Peek(1) == '/')) Advance();
        if (AtEnd()) {
          return ErrorAt(begin, "this comment is not closed: expected */");
        }
        Advance();
        Advance();
      } else {
        break;
      }
    }
    return absl::OkStatus();
  }

  absl::Status ParseValue(Value& out, int depth) {
    if (depth > kDepthMax) {
      return Error(Cat("nested deeper than ", kDepthMax, " levels"));
    }
    if (++values_ > kValuesMax) {
      return Error(Cat("more than ", kValuesMax, " values"));
    }
    out.position = Here();
    const char c = Peek();
    if (c == '{') return ParseObject(out, depth);
    if (c == '[') return ParseArray(out, depth);
    if (c == '"') {
      out.kind = Value::Kind::kString;
      return ParseString(out.text);
    }
    if (c == '-' || c == '+' || c == '.' || IsDigit(c)) {
      return ParseNumber(out);
    }
    return ParseWord(out);
  }

  absl::Status ParseObject(Value& out, int depth) {
    out.kind = Value::Kind::kObject;
    Advance();
    std::unordered_map<std::string, Position> seen;
    while (true) {
      STOWAGE_RETURN_IF_ERROR(SkipBlank());
      if (Peek() == '}' && !AtEnd()) break;
      if (AtEnd() || Peek() != '"') {
        return Error(Cat("expected a key in double quotes or '}', ", "found ",
                         Found(), Opened('{', out)));
      }
      Member member;
      member.position = Here();
      STOWAGE_RETURN_IF_ERROR(ParseString(member.key));
      const auto [first, inserted] = seen.emplace(member.key, member.position);
      if (!inserted) {
        return ErrorAt(
            member.position,
            Cat("duplicate key ", ShortKey(member.key), ", first at ", file_,
                ":", first->second.line, ":", first->second.column));
      }
      STOWAGE_RETURN_IF_ERROR(SkipBlank());
      if (AtEnd() || Peek() != ':') {
        return Error(Cat("expected ':' after the key ", ShortKey(member.key),
                         ", found ", Found()));
      }
      Advance();
      STOWAGE_RETURN_IF_ERROR(SkipBlank());
      STOWAGE_RETURN_IF_ERROR(ParseValue(member.value, depth + 1));
      const std::string key = ShortKey(member.key);
      out.members.push_back(std::move(member));
      STOWAGE_RETURN_IF_ERROR(SkipBlank());
      if (!AtEnd() && Peek() == ',') {
        Advance();
      } else if (AtEnd() || Peek() != '}') {
        return Error(Cat("expected ',' or '}' after the value of ", key,
                         ", found ", Found(), Opened('{', out)));
      }
    }
    Advance();
    return absl::OkStatus();
  }

  absl::Status ParseArray(Value& out, int depth) {
    out.kind = Value::Kind::kArray;
    Advance();
    while (true) {
      STOWAGE_RETURN_IF_ERROR(SkipBlank());
      if (Peek() == ']' && !AtEnd()) break;
      if (AtEnd()) {
        return Error(
            Cat("expected a value or ']', found ", Found(), Opened('[', out)));
      }
      Value item;
      STOWAGE_RETURN_IF_ERROR(ParseValue(item, depth + 1));
      out.items.push_back(std::move(item));
      STOWAGE_RETURN_IF_ERROR(SkipBlank());
      if (!AtEnd() && Peek() == ',') {
        Advance();
      } else if (AtEnd() || Peek() != ']') {
        return Error(Cat("expected ',' or ']' after a list's value, ", "found ",
                         Found(), Opened('[', out)));
      }
    }
    Advance();
    return absl::OkStatus();
  }

  std::string Opened(char bracket, const Value& out) const {
    return Cat(" (the '", std::string(1, bracket), "' of ", out.position.line,
               ":", out.position.column, " is open)");
  }

  static std::string ShortKey(const std::string& key) {
    return key.size() <= 64 ? JsonString(key)
                            : JsonString(Cat(key.substr(0, 60), "..."));
  }

  absl::Status ParseHex4(std::uint32_t& out) {
    out = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = Peek();
      std::uint32_t digit = 0;
      if (IsDigit(c)) {
        digit = static_cast<std::uint32_t>(c - '0');
      } else if (c >= 'a' && c <= 'f') {
        digit = static_cast<std::uint32_t>(c - 'a' + 10);
      } else if (c >= 'A' && c <= 'F') {
        digit = static_cast<std::uint32_t>(c - 'A' + 10);
      } else {
        return Error("expected four hexadecimal digits after \\u");
      }
      out = out * 16 + digit;
      Advance();
    }
    return absl::OkStatus();
  }

  absl::Status ParseEscape(std::string& out) {
    const Position begin = Here();
    Advance();  // the backslash
    const char c = Peek();
    if (AtEnd()) {
      return ErrorAt(begin, "expected an escape after the backslash");
    }
    if (c != 'u') {
      constexpr std::string_view kFrom = "\"\\/bfnrt";
      constexpr std::string_view kTo = "\"\\/\b\f\n\r\t";
      const std::size_t index = kFrom.find(c);
      if (index == std::string_view::npos) {
        return ErrorAt(begin,
                       "unknown escape: expected one of \\\" \\\\ \\/ \\b \\f "
                       "\\n \\r \\t \\uXXXX");
      }
      out += kTo[index];
      Advance();
      return absl::OkStatus();
    }
    Advance();
    std::uint32_t code = 0;
    STOWAGE_RETURN_IF_ERROR(ParseHex4(code));
    if (code >= 0xD800 && code < 0xDC00) {
      std::uint32_t low = 0;
      if (Peek() != '\\' || Peek(1) != 'u') {
        return ErrorAt(begin, "expected the second half of a surrogate pair");
      }
      Advance();
      Advance();
      STOWAGE_RETURN_IF_ERROR(ParseHex4(low));
      if (low < 0xDC00 || low > 0xDFFF) {
        return ErrorAt(begin, "expected the second half of a surrogate pair");
      }
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    } else if (code >= 0xDC00 && code <= 0xDFFF) {
      return ErrorAt(begin, "the second half of a surrogate pair stands alone");
    }
    AppendUtf8(code, out);
    return absl::OkStatus();
  }

  absl::Status ParseString(std::string& out) {
    const Position begin = Here();
    Advance();
    while (true) {
      if (AtEnd() || Peek() == '\n') {
        return ErrorAt(begin,
                       "this string is not closed: expected '\"' on its line");
      }
      const char c = Peek();
      if (c == '"') break;
      if (c == '\\') {
        STOWAGE_RETURN_IF_ERROR(ParseEscape(out));
        continue;
      }
      if (static_cast<unsigned char>(c) < 0x20 && c != '\t') {
        return Error("a control character in a string: expected its escape");
      }
      const std::size_t length = Utf8Length(text_.substr(offset_));
      if (length == 0) return Error("a byte that is not UTF-8 in a string");
      out += text_.substr(offset_, length);
      offset_ += length;
    }
    Advance();
    return absl::OkStatus();
  }

  absl::Status ParseNumber(Value& out) {
    const std::size_t begin = offset_;
    if (Peek() == '-' || Peek() == '+') Advance();
    const bool negative = text_[begin] == '-';
    if (text_.substr(offset_, 8) == "Infinity" && !IsWordChar(Peek(8))) {
      offset_ += 8;
      SetNumber(out, begin,
                negative ? -std::numeric_limits<double>::infinity()
                         : std::numeric_limits<double>::infinity());
      return absl::OkStatus();
    }
    bool integral = true;
    std::size_t digits = SkipDigits();
    if (Peek() == '.') {
      integral = false;
      Advance();
      digits += SkipDigits();
    }
    if (digits == 0) {
      return ErrorAt(out.position, Cat("expected a number after '",
                                       text_.substr(begin, 1), "'"));
    }
    if (Peek() == 'e' || Peek() == 'E') {
      integral = false;
      Advance();
      if (Peek() == '-' || Peek() == '+') Advance();
      if (SkipDigits() == 0) {
        return Error(
            Cat("expected the digits of an exponent, found ", Found()));
      }
    }
    if (IsWordChar(Peek()) || Peek() == '.') {
      return Error(
          Cat("expected the end of the number ",
              text_.substr(begin, std::min<std::size_t>(offset_ - begin, 40)),
              ", found ", Found()));
    }
    std::string_view digits_text = text_.substr(begin, offset_ - begin);
    if (digits_text[0] == '+') digits_text.remove_prefix(1);
    double number = 0;
    const auto [end, error] = std::from_chars(
        digits_text.data(), digits_text.data() + digits_text.size(), number);
    if (error == std::errc::result_out_of_range) {
      return ErrorAt(out.position, Cat("the number ", digits_text.substr(0, 40),
                                       " is outside what a double can hold"));
    }
    SetNumber(out, begin, number);
    std::int64_t integer = 0;
    if (integral) {
      const auto parsed = std::from_chars(
          digits_text.data(), digits_text.data() + digits_text.size(), integer);
      out.is_integer = parsed.ec == std::errc();
      out.integer = out.is_integer ? integer : 0;
    }
    return absl::OkStatus();
  }

  std::size_t SkipDigits() {
    const std::size_t begin = offset_;
    while (!AtEnd() && IsDigit(Peek())) Advance();
    return offset_ - begin;
  }

  void SetNumber(Value& out, std::size_t begin, double number) const {
    out.kind = Value::Kind::kNumber;
    out.number = number;
    out.text = std::string(text_.substr(begin, offset_ - begin));
    // 2^63 itself does not fit; every smaller double with no fraction does.
    if (std::fabs(number) < 9223372036854775808.0 &&
        std::trunc(number) == number) {
      out.is_integer = true;
      out.integer = static_cast<std::int64_t>(number);
    }
  }

  absl::Status ParseWord(Value& out) {
    std::size_t end = offset_;
    while (end < text_.size() && IsWordChar(text_[end])) ++end;
    const std::string_view word = text_.substr(offset_, end - offset_);
    if (word == "true" || word == "false") {
      out.kind = Value::Kind::kBool;
      out.boolean = word == "true";
    } else if (word == "null") {
      out.kind = Value::Kind::kNull;
    } else if (word == "Infinity" || word == "NaN") {
      out.kind = Value::Kind::kNumber;
      out.number = word == "NaN" ? std::numeric_limits<double>::quiet_NaN()
                                 : std::numeric_limits<double>::infinity();
      out.text = std::string(word);
    } else if (word == "True" || word == "False" || word == "None") {
      return Error(Cat("expected a value, found ", Found(),
                       " (JSON writes true, false and null)"));
    } else {
      return Error(Cat("expected a value, found ", Found()));
    }
    offset_ = end;
    return absl::OkStatus();
  }

  std::string_view text_;
  std::string_view file_;
  std::size_t offset_ = 0;
  int line_ = 1;
  std::size_t line_begin_ = 0;
  std::int64_t values_ = 0;
};

}  // namespace

absl::StatusOr<Value> ParseJson(std::string_view text, std::string_view file) {
  return Parser(text, file).Run();
}

}  // namespace stowage::engine::config
