// Every key of the schema put into both shipped files, wrong in every way that
// the schema knows: another type, out of range, misspelt, twice, under two
// names, against a flag. Each gives one clear line or a documented warning.
//
// mutation_test.cc does the same to the keys that the files have.

#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/config/config.h"
#include "engine/config/schema.h"
#include "engine/config/settings.h"
#include "engine/config/value_check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/config/config_testing.h"

namespace stowage::engine::config {
namespace {

using ::testing::HasSubstr;

std::vector<Document> Shipped() {
  const char* source = std::getenv("STOWAGE_SOURCE_DIR");
  std::vector<Document> out;
  for (const char* name : {"stage2_test.json", "stage3_test.json"}) {
    auto document = ReadConfigFile(
        std::string(source == nullptr ? "." : source) + "/configs/" + name);
    EXPECT_TRUE(document.ok()) << document.status().ToString();
    out.push_back(*std::move(document));
  }
  return out;
}

// The block of `path` in `root`, made where it is not there.
Value& BlockOf(Value& root, std::string_view path) {
  std::vector<std::string> parts = absl::StrSplit(std::string(path), '.');
  parts.pop_back();
  Value* block = &root;
  for (const std::string& part : parts) {
    Value* next = nullptr;
    for (Member& member : block->members) {
      if (member.key == part) next = &member.value;
    }
    if (next == nullptr) {
      Member member;
      member.key = part;
      member.value = MakeFromJson("{}");
      block->members.push_back(std::move(member));
      next = &block->members.back().value;
    }
    block = next;
  }
  return *block;
}

std::string NameOf(std::string_view path) {
  const std::size_t dot = path.rfind('.');
  return std::string(dot == std::string_view::npos ? path
                                                   : path.substr(dot + 1));
}

// The file with `path` set, in place of what it had.
std::string With(const Document& document, std::string_view path,
                 const Value& value, const std::string& name) {
  Document copy = document;
  Value& block = BlockOf(copy.root, path);
  std::erase_if(block.members, [&](const Member& member) {
    return member.key == NameOf(path);
  });
  Member member;
  member.key = name;
  member.value = value;
  block.members.push_back(std::move(member));
  return JsonOf(copy.root);
}

// One line that names file and key, and is short enough to read.
void ExpectOneClearLine(const std::string& error, std::string_view path) {
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  EXPECT_THAT(error, HasSubstr("c.json"));
  EXPECT_THAT(error, HasSubstr(NameOf(path)));
  EXPECT_LT(error.size(), 700U) << error;
}

// Whether the schema lets the key have `value` (a copy: it is normalized).
bool Fits(const Key& key, Value value) {
  if (key.type == KeyType::kAny) return true;
  if (value.kind == Value::Kind::kNull) return key.nullable;
  return CheckValue(key, value).ok;
}

bool Warned(const Resolution& resolution, std::string_view path) {
  for (const Warning& warning : resolution.warnings) {
    if (warning.path == path && !warning.message.empty()) return true;
  }
  return false;
}

// What must hold of the file with `path` = `value`.
void Check(const Document& document, const Key& key, const Value& value) {
  const std::string text = With(document, key.path, value, NameOf(key.path));
  const auto resolution = ResolveText(text, FullTrainer());
  const Key& target = *key.same_as == '\0' ? key : *FindKey(key.same_as);
  const bool is_auto =
      value.kind == Value::Kind::kString && value.text == "auto";
  if (!resolution.ok()) {
    // Another key may be the one that is wrong now: a batch, a type's params.
    const std::string error(resolution.status().message());
    EXPECT_EQ(error.find('\n'), std::string::npos) << text << "\n" << error;
    EXPECT_THAT(error, HasSubstr("c.json"));
    return;
  }
  // null stands for a key that is not there, where it may stand at all.
  const bool absent = value.kind == Value::Kind::kNull && key.nullable;
  EXPECT_TRUE(absent || target.rule != Rule::kRefused) << text;
  EXPECT_TRUE(is_auto || Fits(key, value)) << text;
  if (value.kind == Value::Kind::kNull || is_auto) return;
  const bool usual =
      *target.only != '\0' && JsonOf(value) == std::string(target.only);
  if (!usual &&
      (target.rule == Rule::kFixed || target.rule == Rule::kNoEffect)) {
    EXPECT_TRUE(Warned(*resolution, target.path)) << text;
  }
}

std::vector<Value> WrongTypes() {
  return {MakeBool(true),     MakeBool(false),         MakeInt(7),
          MakeNumber(1.5),    MakeString("x"),         MakeString("3"),
          MakeString("auto"), MakePair(0.5, 0.6),      MakeFromJson("[]"),
          MakeFromJson("{}"), MakeFromJson("[\"x\"]"), Value()};
}

TEST(EveryKey, OfAnotherTypeIsOneLineOrAWarning) {
  for (const Document& document : Shipped()) {
    for (const Key& key : Schema()) {
      if (key.type == KeyType::kBlock) continue;
      for (const Value& value : WrongTypes()) Check(document, key, value);
    }
  }
}

TEST(EveryKey, OutOfRangeIsOneLineThatSaysTheRange) {
  int tried = 0;
  for (const Document& document : Shipped()) {
    for (const Key& key : Schema()) {
      if (key.type != KeyType::kInt && key.type != KeyType::kNumber) continue;
      std::vector<double> outside;
      if (std::isfinite(key.min)) {
        outside.push_back(key.above_min ? key.min : key.min - 1);
      }
      if (std::isfinite(key.max)) outside.push_back(key.max + 1);
      if (key.type == KeyType::kInt) outside.push_back(1e300);
      for (const double number : outside) {
        const Value value = MakeNumber(number);
        if (Fits(key, value)) continue;
        ++tried;
        const std::string text =
            With(document, key.path, value, NameOf(key.path));
        const std::string error = ErrorOf(text, FullTrainer());
        EXPECT_NE(error, "") << text;
        ExpectOneClearLine(error, key.path);
        EXPECT_THAT(error, HasSubstr("expected ")) << text;
      }
    }
  }
  EXPECT_GT(tried, 100);
}

TEST(EveryKey, MisspeltIsUnknownAndTheRightOneIsNamed) {
  for (const Document& document : Shipped()) {
    for (const Key& key : Schema()) {
      const std::string name = NameOf(key.path);
      const std::string wrong = name + "x";
      const Value value =
          key.type == KeyType::kBlock ? MakeFromJson("{}") : MakeInt(1);
      const std::string text = With(document, key.path, value, wrong);
      const std::string error = ErrorOf(text, FullTrainer());
      // Inside a block that is refused as a whole, or of a type that has no
      // such parameters, that comes first.
      EXPECT_NE(error, "") << text;
      EXPECT_EQ(error.find('\n'), std::string::npos) << error;
      if (error.find("unknown key") != std::string::npos && name.size() > 3) {
        EXPECT_THAT(error, HasSubstr("did you mean \"")) << text;
      }
    }
  }
}

TEST(EveryKey, TwiceIsRefusedWithBothPlaces) {
  for (const Document& document : Shipped()) {
    for (const Key& key : Schema()) {
      Document copy = document;
      Value& block = BlockOf(copy.root, key.path);
      Member member;
      member.key = NameOf(key.path);
      member.value = MakeInt(1);
      block.members.push_back(member);
      block.members.push_back(member);
      const std::string error = ErrorOf(JsonOf(copy.root), FullTrainer());
      EXPECT_THAT(error, HasSubstr("duplicate key"));
      EXPECT_THAT(error, HasSubstr(", first at c.json:1:"));
      ExpectOneClearLine(error, key.path);
    }
  }
}

TEST(EveryKey, UnderTwoNamesIsRefused) {
  int tried = 0;
  for (const Document& document : Shipped()) {
    for (const Key& key : Schema()) {
      if (*key.same_as == '\0' || key.type != KeyType::kBool) continue;
      ++tried;
      Document copy = document;
      for (const char* path : {key.path, key.same_as}) {
        Value& block = BlockOf(copy.root, path);
        std::erase_if(block.members, [&](const Member& member) {
          return member.key == NameOf(path);
        });
        Member member;
        member.key = NameOf(path);
        member.value = FindKey(path)->type == KeyType::kEnum ? MakeString("cpu")
                                                             : MakeBool(false);
        block.members.push_back(std::move(member));
      }
      const std::string error = ErrorOf(JsonOf(copy.root), FullTrainer());
      EXPECT_NE(error, "") << key.path << " and " << key.same_as;
      EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    }
  }
  EXPECT_GT(tried, 4);
}

// Every key that a flag fills, with a value that is not the flag's.
TEST(EveryKey, AgainstAFlagIsRefusedAndNamesBoth) {
  struct Case {
    const char* path;
    const char* json;
    const char* flag;
    void (*set)(TrainerValues*);
  };
  const Case cases[] = {
      {"gradient_clipping", "0.25", "--max-grad-norm",
       [](TrainerValues* t) {
         t->max_grad_norm = {1.0, true};
       }},
      {"optimizer.params.lr", "0.25", "--lr",
       [](TrainerValues* t) {
         t->lr = {1e-3, true};
       }},
      {"optimizer.params.eps", "0.25", "--eps",
       [](TrainerValues* t) {
         t->eps = {1e-8, true};
       }},
      {"optimizer.params.weight_decay", "0.25", "--weight-decay",
       [](TrainerValues* t) {
         t->weight_decay = {0.5, true};
       }},
      {"optimizer.params.betas", "[0.1, 0.2]", "--betas",
       [](TrainerValues* t) {
         t->betas = {schedule::Betas{0.9, 0.99}, true};
       }},
      {"scheduler.params.warmup_max_lr", "0.25", "--lr",
       [](TrainerValues* t) {
         t->lr = {1e-3, true};
       }},
      {"scheduler.params.warmup_num_steps", "25", "--warmup-steps",
       [](TrainerValues* t) {
         t->warmup_num_steps = {7, true};
       }},
      {"train_micro_batch_size_per_gpu", "8", "--micro-batch",
       [](TrainerValues* t) {
         t->micro_batch = {2, true};
       }},
      {"gradient_accumulation_steps", "8", "--accumulation",
       [](TrainerValues* t) {
         t->gradient_accumulation_steps = {2, true};
       }},
      {"fp16.enabled", "false", "--precision", [](TrainerValues* t) {
         t->precision = {Dtype::kFp16, true};
       }}};
  for (const Document& document : Shipped()) {
    for (const Case& c : cases) {
      TrainerValues trainer = FullTrainer();
      c.set(&trainer);
      const std::string text =
          With(document, c.path, MakeFromJson(c.json), NameOf(c.path));
      const std::string error = ErrorOf(text, trainer);
      EXPECT_NE(error, "") << text;
      ExpectOneClearLine(error, c.path);
      EXPECT_THAT(error, HasSubstr(c.flag)) << text;
    }
  }
}

}  // namespace
}  // namespace stowage::engine::config
