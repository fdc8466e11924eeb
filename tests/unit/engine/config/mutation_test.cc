// Both shipped files, broken in every way that one edit can break them: each
// gives one clear line or a documented warning, none crashes.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/config/config.h"
#include "engine/config/json_text.h"
#include "engine/config/schema.h"
#include "engine/config/settings.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/config/config_testing.h"

namespace stowage::engine::config {
namespace {

using ::testing::HasSubstr;

const char* const kFiles[] = {"stage2_test.json", "stage3_test.json"};

Document Shipped(const std::string& name) {
  const char* source = std::getenv("STOWAGE_SOURCE_DIR");
  auto document = ReadConfigFile(std::string(source == nullptr ? "." : source) +
                                 "/configs/" + name);
  EXPECT_TRUE(document.ok()) << document.status().ToString();
  return *document;
}

// Calls `visit(object, index, path)` for every member of the tree until it
// returns false.
template <typename Visit>
bool ForEachMember(Value& block, const std::string& prefix, Visit visit) {
  for (std::size_t i = 0; i < block.members.size(); ++i) {
    const std::string path =
        prefix.empty() ? block.members[i].key
                       : absl::StrCat(prefix, ".", block.members[i].key);
    if (!visit(block, i, path)) return false;
    if (block.members[i].value.kind == Value::Kind::kObject &&
        !ForEachMember(block.members[i].value, path, visit)) {
      return false;
    }
  }
  return true;
}

// The file with one member changed by `change(object, index)`, as text.
template <typename Change>
std::string Mutate(const Document& document, const std::string& target,
                   Change change) {
  Document copy = document;
  const bool missed = ForEachMember(
      copy.root, "",
      [&](Value& block, std::size_t index, const std::string& path) {
        if (path != target) return true;
        change(block, index);
        return false;
      });
  EXPECT_FALSE(missed) << target;
  return JsonOf(copy.root);
}

std::vector<std::string> PathsOf(Document document) {
  std::vector<std::string> out;
  ForEachMember(document.root, "",
                [&](Value&, std::size_t, const std::string& path) {
                  out.push_back(path);
                  return true;
                });
  return out;
}

void ExpectOneClearLine(const std::string& error) {
  if (error.empty()) return;
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  EXPECT_THAT(error, HasSubstr("c.json"));
  EXPECT_LT(error.size(), 600U) << error;
}

TEST(ConfigMutation, DroppedKeysFallToTheDefaultOrAreMissed) {
  for (const char* file : kFiles) {
    const Document document = Shipped(file);
    for (const std::string& path : PathsOf(document)) {
      const std::string text =
          Mutate(document, path, [](Value& block, std::size_t i) {
            block.members.erase(block.members.begin() +
                                static_cast<std::ptrdiff_t>(i));
          });
      const std::string error = ErrorOf(text, FullTrainer());
      ExpectOneClearLine(error);
      // Only the type of a block that is there cannot be left out, and stage 3
      // for what needs it.
      const bool needed = path == "optimizer.type" ||
                          path == "scheduler.type" ||
                          ((path == "zero_optimization.stage") &&
                           std::string_view(file) == "stage3_test.json");
      EXPECT_EQ(!error.empty(), needed) << path << ": " << error;
    }
  }
}

TEST(ConfigMutation, MisspeltKeysNameTheRightOne) {
  for (const char* file : kFiles) {
    const Document document = Shipped(file);
    for (const std::string& path : PathsOf(document)) {
      const std::size_t dot = path.rfind('.');
      const std::string name =
          dot == std::string::npos ? path : path.substr(dot + 1);
      std::vector<std::string> misspelt = {name + "x", name.substr(1),
                                           "x" + name};
      std::string swapped = name;
      std::swap(swapped[name.size() / 2 - 1], swapped[name.size() / 2]);
      if (swapped != name) misspelt.push_back(swapped);
      for (const std::string& wrong : misspelt) {
        const std::string text = Mutate(
            document, path,
            [&](Value& block, std::size_t i) { block.members[i].key = wrong; });
        const std::string error = ErrorOf(text, FullTrainer());
        ExpectOneClearLine(error);
        EXPECT_THAT(error,
                    HasSubstr(absl::StrCat("unknown key \"", wrong, "\"")));
        // "lr" has too few letters for a guess once one is gone.
        if (name.size() > 3) {
          EXPECT_THAT(error,
                      HasSubstr(absl::StrCat("did you mean \"", path, "\"")));
        }
      }
    }
  }
}

TEST(ConfigMutation, AnotherTypeIsSaidWithWhatIsExpected) {
  std::vector<Value> values = {MakeBool(true),     MakeInt(7),
                               MakeNumber(1.5),    MakeString("x"),
                               MakeString("auto"), MakeString("3"),
                               MakePair(0.5, 0.6), MakeFromJson("[]"),
                               MakeFromJson("{}"), Value()};
  for (const char* file : kFiles) {
    const Document document = Shipped(file);
    for (const std::string& path : PathsOf(document)) {
      for (const Value& value : values) {
        const std::string text =
            Mutate(document, path, [&](Value& block, std::size_t i) {
              block.members[i].value = value;
            });
        const std::string error = ErrorOf(text, FullTrainer());
        ExpectOneClearLine(error);
        const Key& key = *FindKey(path);
        const bool scalar = key.type != KeyType::kBlock;
        if (scalar && value.kind == Value::Kind::kObject) {
          EXPECT_THAT(error, HasSubstr(absl::StrCat(path, " = {}: expected ",
                                                    Expected(key))));
        }
        if (key.type == KeyType::kBlock && value.kind == Value::Kind::kNumber) {
          EXPECT_THAT(error, HasSubstr(": expected an object"));
        }
        if (key.type == KeyType::kInt && value.text == "3") {
          EXPECT_THAT(error, HasSubstr("write it without the quotes"));
        }
      }
    }
  }
}

TEST(ConfigMutation, NumbersOutOfRangeAreRefused) {
  for (const char* file : kFiles) {
    const Document document = Shipped(file);
    for (const std::string& path : PathsOf(document)) {
      const Key& key = *FindKey(path);
      for (const double number : {-1.0, -1e30, 0.0, 1e30, 1e300}) {
        const std::string text =
            Mutate(document, path, [&](Value& block, std::size_t i) {
              block.members[i].value = MakeNumber(number);
            });
        const std::string error = ErrorOf(text, FullTrainer());
        ExpectOneClearLine(error);
        if (number < 0 || (key.type == KeyType::kInt && number > 1e20)) {
          EXPECT_THAT(error, HasSubstr(path)) << text;
          EXPECT_THAT(error, HasSubstr("expected ")) << text;
        }
      }
    }
  }
}

TEST(ConfigMutation, ContradictionsAreOneLine) {
  const Document document = Shipped("stage3_test.json");
  struct Case {
    const char* path;
    Value value;
    const char* want;
  };
  for (const Case& c : std::vector<Case>{
           {"zero_optimization.stage", MakeInt(2),
            "needs zero_optimization.stage 3, which is 2"},
           {"train_batch_size", MakeInt(25), "does not factor: 25 != 4"},
           {"gradient_accumulation_steps", MakeInt(5), ""},
           {"zero_optimization.offload_param.device", MakeString("nvme"),
            "needs zero_optimization.offload_param.nvme_path"},
           {"zero_optimization.offload_optimizer.device", MakeString("nvme"),
            "needs zero_optimization.offload_optimizer.nvme_path"},
           {"scheduler.type", MakeString("OneCycle"), ""},
           {"optimizer.type", MakeString("OneBitAdam"),
            "needs zero_optimization.stage 0"},
           {"optimizer.type", MakeString("SGD"), "expected \"Adam\""}}) {
    const std::string text = Mutate(
        document, c.path,
        [&](Value& block, std::size_t i) { block.members[i].value = c.value; });
    const std::string error = ErrorOf(text, FullTrainer());
    EXPECT_THAT(error, HasSubstr(c.want));
    if (*c.want != '\0') ExpectOneClearLine(error);
  }
}

TEST(ConfigMutation, DuplicatesAreRefusedWithBothPlaces) {
  for (const char* file : kFiles) {
    const Document document = Shipped(file);
    for (const std::string& path : PathsOf(document)) {
      const std::string text =
          Mutate(document, path, [](Value& block, std::size_t i) {
            block.members.push_back(block.members[i]);
          });
      const std::string error = ErrorOf(text, FullTrainer());
      ExpectOneClearLine(error);
      EXPECT_THAT(error, HasSubstr("duplicate key"));
      EXPECT_THAT(error, HasSubstr(", first at c.json:1:"));
    }
  }
}

// Random bytes in place of others: an error or a resolution, never a crash.
TEST(ConfigMutation, BrokenBytesNeverCrash) {
  constexpr std::uint64_t kSeed = 20240229;
  RecordProperty("seed", absl::StrCat(kSeed));
  std::mt19937_64 random(kSeed);
  constexpr std::string_view kTokens[] = {
      "{", "}",  "[",    "]",    ":",    ",",        "\"",   "//", "/*",
      "#", "-",  "1e",   "1e9",  "true", "Infinity", "NaN",  "\\", "\\u",
      "0", "\n", "null", "auto", "\xFF", "\xC3",     "e308", ".",  "[[[[[["};
  for (const char* file : kFiles) {
    const std::string whole = JsonOf(Shipped(file).root);
    for (int round = 0; round < 4000; ++round) {
      std::string text = whole;
      const auto edits = 1 + random() % 4;
      for (std::uint64_t e = 0; e < edits; ++e) {
        const std::size_t at = random() % text.size();
        switch (random() % 4) {
          case 0:
            text[at] = static_cast<char>(random());
            break;
          case 1:
            text.erase(at, 1 + random() % 16);
            break;
          case 2:
            text.resize(at + 1);
            break;
          default:
            text.insert(at, kTokens[random() % std::size(kTokens)]);
        }
        if (text.empty()) text = "{";
      }
      const auto resolution = ResolveText(text, FullTrainer());
      if (!resolution.ok()) {
        ASSERT_FALSE(resolution.status().message().empty());
        ASSERT_EQ(std::string(resolution.status().message()).find('\0'),
                  std::string::npos);
      } else {
        ExplainText(*resolution);
        ExplainJson(*resolution);
      }
    }
  }
}

}  // namespace
}  // namespace stowage::engine::config
