#include "tuning.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <shared_mutex>

#include <nlohmann/json.hpp>

#include <deepnet/error.hpp>

#include "io/file.hpp"

#ifdef __APPLE__
#include <sys/sysctl.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace deepnet {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* product_names[] = {"forward", "backward_data", "backward_weight"};
constexpr const char* algorithm_names[] = {"depthwise", "lane_depthwise",  "implicit", "lanes",
                                           "winograd",  "turned_winograd", "col2im"};

template <class Enum>
const char* name_of(const char* const* names, Enum value) {
  return names[static_cast<int>(value)];
}

// The enumerator with that name.
template <class Enum, std::size_t n>
Enum named(const char* const (&names)[n], const std::string& name) {
  const auto found = std::find(std::begin(names), std::end(names), name);
  if (found == std::end(names)) throw ValueError("unknown name '" + name + "'");
  return static_cast<Enum>(found - std::begin(names));
}

std::atomic<bool> in_use{false};
std::shared_mutex decisions_mutex;
std::map<TuningKey, ConvAlgorithm> decisions;

std::optional<ConvAlgorithm> find_decision(const TuningKey& key) {
  const std::shared_lock lock(decisions_mutex);
  const auto found = decisions.find(key);
  return found == decisions.end() ? std::nullopt : std::optional(found->second);
}

// Held while a decision is made, and while the file and whether to time change.
std::mutex tuning_mutex;
bool is_on = false;
std::string cache_path;           // empty: none
std::map<TuningKey, json> saved;  // of this instruction set: the file's entries

// Timing takes a while: a process forked meanwhile would have the mutex locked for good. So fork() waits for it.
void let_forks_wait() {
#if defined(__unix__) || defined(__APPLE__)
  const auto lock = [] {
    tuning_mutex.lock();
    decisions_mutex.lock();
  };
  const auto unlock = [] {
    decisions_mutex.unlock();
    tuning_mutex.unlock();
  };
  const auto unlock_in_child = [] {
    new (&decisions_mutex) std::shared_mutex;  // which glibc lets only the thread unlock that locked it
    tuning_mutex.unlock();
  };
  static const int done = pthread_atfork(lock, unlock, unlock_in_child);
  static_cast<void>(done);
#endif
}

// --- the file --------------------------------------------------------------------------------------------------

//   {"deepnet": "0.1.0", "cpu": "...", "choices": {"avx2": [
//     {"product": "forward", "shape": [...], "algorithm": "lanes", "model": "implicit", "microseconds": {...}}]}}
// Of another version or CPU it is begun anew. What the cost model would have chosen, and the times, are for people.
const char* const who = "autotune";

json read_file() {
  const json fresh = {{"deepnet", version()}, {"cpu", cpu_name()}, {"choices", json::object()}};
  std::error_code ignored;
  if (!fs::exists(fs::u8path(cache_path), ignored)) return fresh;
  InputFile file(who, cache_path);
  std::string text(static_cast<std::size_t>(file.size()), '\0');
  file.read(text.data(), text.size());
  const json content = json::parse(text, nullptr, false);
  if (!content.is_object() || !content.contains("choices") || !content["choices"].is_object())
    throw ValueError(file.message("expected choices that autotune wrote: delete the file, or name another as cache"));
  const bool ours =
      content.value("deepnet", json()) == fresh["deepnet"] && content.value("cpu", json()) == fresh["cpu"];
  return ours ? content : fresh;
}

ConvAlgorithm algorithm_of(const json& entry) { return named<ConvAlgorithm>(algorithm_names, entry.at("algorithm")); }

// The entries for this instruction set; those that this version does not understand are none.
std::map<TuningKey, json> entries_of(const json& content) {
  std::map<TuningKey, json> found;
  for (const json& entry : content["choices"].value(active_isa(), json::array())) {
    try {
      algorithm_of(entry);
      found[{named<ConvProduct>(product_names, entry.at("product")), entry.at("shape")}] = entry;
    } catch (const std::exception&) {
      continue;
    }
  }
  return found;
}

// Adds our entries to what the file holds by now: another process may have written.
void save() {
  json content = read_file();
  saved.merge(entries_of(content));
  json& entries = content["choices"][active_isa()] = json::array();
  for (const auto& [key, entry] : saved) entries.push_back(entry);
  const std::string text = content.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
  AtomicFile file(who, cache_path);
  file.write(text.data(), text.size());
  file.commit();
}

// Where that is no longer possible, choices last as long as the process.
void keep() {
  if (cache_path.empty()) return;
  try {
    save();
  } catch (const std::exception&) {
    cache_path.clear();
  }
}

// --- timing ----------------------------------------------------------------------------------------------------

using Times = std::map<ConvAlgorithm, double>;  // seconds

// The least time of each, all in turns, because a machine's speed changes while one waits.
Times time_all(const std::vector<ConvAlgorithm>& candidates, TuningTrial& trial) {
  using clock = std::chrono::steady_clock;
  constexpr double enough_s = 0.1, hopeless = 3.0;
  constexpr int least_rounds = 3, most_rounds = 15;
  const auto seconds_since = [](clock::time_point t) {
    return std::chrono::duration<double>(clock::now() - t).count();
  };
  Times best;
  for (const ConvAlgorithm algorithm : candidates) best[algorithm] = std::numeric_limits<double>::infinity();
  const auto begin = clock::now();
  double least = std::numeric_limits<double>::infinity();
  for (int round = 0; round < least_rounds || (round < most_rounds && seconds_since(begin) < enough_s); ++round) {
    for (auto& [algorithm, time] : best) {
      if (round > 1 && time > hopeless * least) continue;
      const auto start = clock::now();
      trial.run(algorithm);
      if (round > 0) time = std::min(time, seconds_since(start));  // the first one touches memory for the first time
      least = std::min(least, time);
    }
  }
  return best;
}

// The cost model's choice stays unless another is clearly faster.
ConvAlgorithm fastest(const Times& times, ConvAlgorithm by_model) {
  constexpr double clearly = 0.95;
  const auto faster = [](const auto& a, const auto& b) { return a.second < b.second; };
  const auto [algorithm, time] = *std::min_element(times.begin(), times.end(), faster);
  return time < clearly * times.at(by_model) ? algorithm : by_model;
}

// Times the candidates and keeps what comes out.
ConvAlgorithm tune(const TuningKey& key, ConvAlgorithm by_model, const std::vector<ConvAlgorithm>& candidates,
                   TuningTrial& trial) {
  const Times times = time_all(candidates, trial);
  const ConvAlgorithm choice = fastest(times, by_model);
  json microseconds;
  for (const auto& [algorithm, time] : times) microseconds[name_of(algorithm_names, algorithm)] = time * 1e6;
  saved[key] = {{"product", name_of(product_names, key.product)},
                {"shape", key.shape},
                {"algorithm", name_of(algorithm_names, choice)},
                {"model", name_of(algorithm_names, by_model)},
                {"microseconds", microseconds}};
  keep();
  return choice;
}

}  // namespace

// --- decisions -------------------------------------------------------------------------------------------------

bool is_tuning_in_use() { return in_use.load(std::memory_order_acquire); }

ConvAlgorithm decided(const TuningKey& key, ConvAlgorithm otherwise) { return find_decision(key).value_or(otherwise); }

ConvAlgorithm decide(const TuningKey& key, ConvAlgorithm by_model, const std::vector<ConvAlgorithm>& candidates,
                     std::unique_ptr<TuningTrial> (*make)(const TuningKey&)) {
  if (const auto found = find_decision(key)) return *found;
  const std::lock_guard one_at_a_time(tuning_mutex);
  if (const auto found = find_decision(key)) return *found;
  ConvAlgorithm choice = by_model;
  if (is_on && candidates.size() > 1) {
    const auto known = saved.find(key);
    const auto applies = [&](ConvAlgorithm a) {
      return std::find(candidates.begin(), candidates.end(), a) != candidates.end();
    };
    if (known != saved.end() && applies(algorithm_of(known->second))) {
      choice = algorithm_of(known->second);
    } else {
      try {
        choice = tune(key, by_model, candidates, *make(key));
      } catch (const std::bad_alloc&) {  // a candidate may want more memory than there is
      } catch (const Error&) {           // and so may the trial's arrays
      }
    }
  }
  const std::unique_lock lock(decisions_mutex);
  return decisions[key] = choice;
}

void autotune(bool on, const std::string& cache) {
  const std::lock_guard lock(tuning_mutex);
  if (!on) {
    is_on = false;
    return;
  }
  const std::string before = cache_path;
  cache_path = cache;
  try {
    if (!cache.empty()) {
      std::error_code error;
      fs::create_directories(fs::u8path(cache).parent_path(), error);
      saved = entries_of(read_file());
      save();  // so that a place where nothing can be written is found now
    }
  } catch (...) {
    cache_path = before;
    throw;
  }
  let_forks_wait();
  is_on = true;
  in_use.store(true, std::memory_order_release);
}

std::string cpu_name() {
#if defined(__APPLE__)
  char name[256] = {};
  std::size_t size = sizeof name - 1;
  if (sysctlbyname("machdep.cpu.brand_string", name, &size, nullptr, 0) == 0) return name;
#elif defined(_WIN32)
  if (const char* name = std::getenv("PROCESSOR_IDENTIFIER")) return name;
#else
  std::ifstream info("/proc/cpuinfo");
  std::string arm;
  for (std::string line; std::getline(info, line);) {
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos || colon + 2 > line.size()) continue;
    const std::string value = line.substr(colon + 2);
    if (line.rfind("model name", 0) == 0) return value;
    if (line.rfind("CPU implementer", 0) == 0 && arm.empty()) arm = "ARM implementer " + value;
    if (line.rfind("CPU part", 0) == 0) return arm + " part " + value;
  }
#endif
  return "unknown";
}

std::string default_autotune_cache() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return fs::u8path(value ? value : "");
  };
#if defined(_WIN32)
  fs::path folder = variable("LOCALAPPDATA");
#elif defined(__APPLE__)
  fs::path folder = variable("HOME") / "Library" / "Caches";
#else
  fs::path folder = variable("XDG_CACHE_HOME");
  if (!folder.is_absolute()) folder = variable("HOME") / ".cache";
#endif
  if (!folder.is_absolute()) return "";
  std::string name;
  for (const char c : cpu_name()) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (plain || (!name.empty() && name.back() != '-')) name += plain ? c : '-';
  }
  return (folder / "deepnet" / ("autotune-" + name + ".json")).u8string();
}

}  // namespace deepnet
