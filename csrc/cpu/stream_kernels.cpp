// The cells of cells/ bound to the layers of a stream; compiled once per instruction set.
#include "../cells/gru.h"
#include "../cells/lstm.h"

#include "stream_layers.h"

namespace rnnkernels::cpu::RNNKERNELS_ISA {
namespace {

template <class C>
struct LstmStep {
  using V = Vec<C>;
  static constexpr int kGates = 4;
  static constexpr bool kHasCellState = true;
  static constexpr int kThirdOfState = 2;

  // Both biases enter L1 alike.
  template <class Gate>
  static V bias(const Gate& gate, const void* b_ih, const void* b_hh, int slot) {
    return gate(b_ih, slot) + gate(b_hh, slot);
  }

  RNN_INLINE static void finish(V i, V f, V g, V o, C* c, const C*, C* h) {
    const cells::LstmForward<V> step = cells::lstm_forward<V>({i, f, g, o}, V::load(c));
    step.c.store(c);
    step.h.store(h);
  }
};

template <class C>
struct GruStep {
  using V = Vec<C>;
  static constexpr int kGates = 3;
  static constexpr bool kHasCellState = false;
  static constexpr int kThirdOfState = 3;  // n's share of the state has a sum of its own (G3), which r weighs (G4)

  template <class Gate>
  static V bias(const Gate& gate, const void* b_ih, const void* b_hh, int slot) {
    if (slot == 2) return gate(b_ih, 2);
    if (slot == 3) return gate(b_hh, 2);
    return gate(b_ih, slot) + gate(b_hh, slot);
  }

  RNN_INLINE static void finish(V r, V z, V n, V q, C*, const C* h_prev, C* h) {
    const V zero(C(0));  // the sums of r and z hold both shares
    cells::gru_forward<V>(r, z, n, zero, zero, q, V::load(h_prev)).h.store(h);
  }
};

template <template <class> class Step>
constexpr StreamTable stream_table() {
  return {stream_kernels<Step<float>, float>(), stream_kernels<Step<double>, double>(),
          stream_kernels<Step<float>, BFloat16>()};
}

}  // namespace

extern const StreamTable kLstmStream;
extern const StreamTable kGruStream;
const StreamTable kLstmStream = stream_table<LstmStep>();
const StreamTable kGruStream = stream_table<GruStep>();

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
