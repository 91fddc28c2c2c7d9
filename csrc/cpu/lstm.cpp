// LSTM: one vector of units forward and backward, between memory and the equations of cells/lstm.h.
#include "../cells/lstm.h"

#include "backward.h"
#include "forward.h"
#include "simd_math.h"
#include "tables.h"

namespace rnnkernels::cpu::RNNKERNELS_ISA {
namespace {

template <class S>
struct Lstm {
  using Storage = S;
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int kGates = 4;
  static constexpr bool kHasCellState = true;
  static constexpr bool kCarriesPastGates = false;
  static constexpr SegmentOfGates kInputSegments[] = {{0, 0, 4}};
  static constexpr SegmentOfGates kRecurrentSegments[] = {{0, 0, 4}};

  // Both biases enter L1 alike.
  template <class Gate>
  static V bias(const Gate& gate, const void* b_ih, const void* b_hh, int index) {
    return gate(b_ih, index) + gate(b_hh, index);
  }

  RNN_INLINE static void forward(const ForwardUnits<S>& u) {
    const auto preactivation = [&](int gate) __attribute__((always_inline)) {  // L1
      const int64_t at = gate * kLanes<C>;
      return V::load(u.bias + at) + V::load(u.x_part + at) + V::load(u.h_part + at);
    };
    const cells::LstmForward<V> step = cells::lstm_forward<V>(
        {preactivation(0), preactivation(1), preactivation(2), preactivation(3)}, V::load(u.c));
    step.c.store(u.c);
    if (u.hidden != nullptr) {
      step.h.store(u.hidden);
    } else {
      store(u.h, step.h, u.count);  // the padding stays zero: pairs of operands reach into it
      store(u.output, step.h, u.count);
    }
    if (u.h_n != nullptr) store(u.h_n, step.h, u.count);
    if (u.gates == nullptr) return;
    store(u.gates, step.gates.i, u.count);
    store(u.gates + u.gate_stride, step.gates.f, u.count);
    store(u.gates + 2 * u.gate_stride, step.gates.g, u.count);
    store(u.gates + 3 * u.gate_stride, step.gates.o, u.count);
    store(u.cells, step.c, u.count);
  }

  RNN_INLINE static void backward(const BackwardUnits<S>& u) {
    const auto saved = [&](int gate) __attribute__((always_inline)) {
      return load(u.gates + gate * u.gate_stride, u.count);
    };
    const cells::LstmGates<V> gates{saved(0), saved(1), saved(2), saved(3)};
    V dh = V::load(u.dh_in);
    if (u.grad_output != nullptr) dh = dh + load(u.grad_output, u.count);
    const V c = load(u.cells, u.count);
    const cells::LstmBackward<V> grad =
        cells::lstm_backward<V>(dh, V::load(u.dc), gates, c, load(u.c_prev, u.count));
    grad.c_prev.store(u.dc);
    store(u.dg, grad.a.i, u.count);
    store(u.dg + u.gate_stride, grad.a.f, u.count);
    store(u.dg + 2 * u.gate_stride, grad.a.g, u.count);
    store(u.dg + 3 * u.gate_stride, grad.a.o, u.count);
    if (u.hidden != nullptr) (gates.o * tanh(c)).store(u.hidden);
  }
};

}  // namespace

extern const CellKernels kLstm;
const CellKernels kLstm = cell_kernels<Lstm>();

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
