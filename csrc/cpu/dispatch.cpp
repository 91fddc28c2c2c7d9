#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace rnnkernels::cpu {

namespace {

struct Isa {
  const char* name;
  bool supported;
};

std::vector<Isa> built() {
  std::vector<Isa> isas{{"baseline", true}};
#ifdef RNNKERNELS_WITH_AVX2
  isas.push_back({"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
#ifdef RNNKERNELS_WITH_AVX512
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  isas.push_back({"avx512", avx512});
#ifdef RNNKERNELS_WITH_AVX512_BF16
  isas.push_back({"avx512_bf16", avx512 && __builtin_cpu_supports("avx512bf16")});
#endif
#endif
  return isas;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

Isa choose() {
  const std::vector<Isa> isas = built();
  const char* wanted = std::getenv("RNNKERNELS_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    Isa widest = isas.front();
    for (const Isa& isa : isas)
      if (isa.supported) widest = isa;
    return widest;
  }
  for (const Isa& isa : isas) {
    if (std::string(wanted) != isa.name) continue;
    if (!isa.supported)
      throw std::runtime_error(std::string("RNNKERNELS_CPU_ISA=") + wanted +
                               ": this processor does not support it; it supports " + joined(supported_isas()));
    return isa;
  }
  throw std::runtime_error(std::string("RNNKERNELS_CPU_ISA=") + wanted +
                           ": not an instruction set of this build, which has " + joined(built_isas()));
}

// A throwing initialiser runs again at the next call: a bad variable is reported every time.
const Isa& chosen() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace

const char* chosen_isa() { return chosen().name; }

std::vector<std::string> built_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : built()) names.push_back(isa.name);
  return names;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : built())
    if (isa.supported) names.push_back(isa.name);
  return names;
}

}  // namespace rnnkernels::cpu
