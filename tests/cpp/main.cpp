// Runs one test program, unless this processor lacks the instruction set it was compiled for. Compiled for the
// baseline, so that the question can be asked.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "../../csrc/cpu/dispatch.h"
#include "harness.h"

namespace {
std::atomic<int64_t> checks{0}, failures{0};
constexpr int64_t kMostPrinted = 20;
constexpr int kSkipped = 77;  // SKIP_RETURN_CODE in CMakeLists.txt
}  // namespace

void harness::record(bool passed, const char* file, int line, const std::string& what) {
  ++checks;
  if (!passed && failures++ < kMostPrinted) std::printf("%s:%d: %s\n", file, line, what.c_str());
}

int main() {
  const char* needed = std::getenv("RNNKERNELS_CPU_ISA");
  const auto supported = rnnkernels::cpu::supported_isas();
  if (needed != nullptr && std::find(supported.begin(), supported.end(), needed) == supported.end()) {
    std::printf("skipped: this processor does not run %s\n", needed);
    return kSkipped;
  }
  run_tests();
  std::printf("%lld checks, %lld failures\n", static_cast<long long>(checks), static_cast<long long>(failures));
  return failures == 0 && checks > 0 ? 0 : 1;
}
