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

  RNN_INLINE static void forward_gates(const ForwardUnits<S>& u) {
    const auto preactivation = [&](int gate) __attribute__((always_inline)) {  // L1
      const int64_t at = gate * kLanes<C>;
      return V::load(u.bias + at) + V::load(u.x_part + at) + V::load(u.h_part + at);
    };
    const cells::LstmGates<V> gates =
        cells::lstm_gates<V>({preactivation(0), preactivation(1), preactivation(2), preactivation(3)});
    const V c = cells::lstm_cell_state<V>(gates, V::load(u.c));
    c.store(u.c);
    gates.o.store(u.h_part);
    if (u.gates == nullptr) return;
    store(u.gates, gates.i, u.count);
    store(u.gates + u.gate_stride, gates.f, u.count);
    store(u.gates + 2 * u.gate_stride, gates.g, u.count);
    store(u.gates + 3 * u.gate_stride, gates.o, u.count);
    store(u.cells, c, u.count);
  }

  RNN_INLINE static void forward_state(const ForwardUnits<S>& u) {
    const V h = cells::lstm_hidden_state<V>(V::load(u.h_part), V::load(u.c));
    // Padding stays zero: pairs of operands reach into it.
    if (u.hidden != nullptr) return store(u.hidden, h, u.count);
    store(u.h, h, u.count);
    store(u.output, h, u.count);
    if (u.last) store(u.h_n, h, u.count);
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
    if (u.hidden != nullptr) store(u.hidden, gates.o * tanh(c));
  }
};

}  // namespace

extern const CellKernels kLstm;
const CellKernels kLstm = cell_kernels<Lstm>();

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
