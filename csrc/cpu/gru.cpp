// GRU: one vector of units forward and backward, between memory and the equations of cells/gru.h.
#include "../cells/gru.h"

#include "backward.h"
#include "forward.h"
#include "simd_math.h"
#include "tables.h"

namespace rnnkernels::cpu::RNNKERNELS_ISA {
namespace {

template <class S>
struct Gru {
  using Storage = S;
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int kGates = 3;
  static constexpr bool kHasCellState = false;
  static constexpr bool kCarriesPastGates = true;
  // dG is r, z, n, q: the recurrent rows of the n gate meet the gradient of q.
  static constexpr SegmentOfGates kInputSegments[] = {{0, 0, 3}};
  static constexpr SegmentOfGates kRecurrentSegments[] = {{0, 0, 2}, {3, 2, 1}};

  // r and z take both biases; n that of the input (G4), q that of the state (G3).
  template <class Gate>
  static V bias(const Gate& gate, const void* b_ih, const void* b_hh, int index) {
    if (index == 2) return gate(b_ih, 2);
    if (index == 3) return gate(b_hh, 2);
    return gate(b_ih, index) + gate(b_hh, index);
  }

  RNN_INLINE static void forward(const ForwardUnits<S>& u) {
    const auto x_part = [&](int gate) __attribute__((always_inline)) {
      return V::load(u.x_part + gate * kLanes<C>) + V::load(u.bias + gate * kLanes<C>);
    };
    const auto h_part = [&](int gate) __attribute__((always_inline)) { return V::load(u.h_part + gate * kLanes<C>); };
    const cells::GruForward<V> step =
        cells::gru_forward<V>(x_part(0), x_part(1), x_part(2), h_part(0), h_part(1),
                              h_part(2) + V::load(u.bias + 3 * kLanes<C>), V::load(u.h_prev));
    store(u.h, step.h, u.count);  // the padding stays zero: pairs of operands reach into it
    if (u.carried != nullptr) step.h.store(u.carried);
    store(u.output, step.h, u.count);
    if (u.h_n != nullptr) store(u.h_n, step.h, u.count);
    if (u.gates == nullptr) return;
    store(u.gates, step.gates.r, u.count);
    store(u.gates + u.gate_stride, step.gates.z, u.count);
    store(u.gates + 2 * u.gate_stride, step.gates.n, u.count);
    store(u.gates + 3 * u.gate_stride, step.gates.q, u.count);
  }

  RNN_INLINE static void backward(const BackwardUnits<S>& u) {
    const auto saved = [&](int gate) __attribute__((always_inline)) {
      return load(u.gates + gate * u.gate_stride, u.count);
    };
    const cells::GruGates<V> gates{saved(0), saved(1), saved(2), saved(3)};
    V dh = V::load(u.dh_in);
    if (u.grad_output != nullptr) dh = dh + load(u.grad_output, u.count);
    const cells::GruBackward<V> grad = cells::gru_backward<V>(dh, gates, V::load(u.h_prev));
    grad.h_prev.store(u.dh_out);
    store(u.dg, grad.r, u.count);
    store(u.dg + u.gate_stride, grad.z, u.count);
    store(u.dg + 2 * u.gate_stride, grad.n, u.count);
    store(u.dg + 3 * u.gate_stride, grad.q, u.count);
  }
};

}  // namespace

extern const CellKernels kGru;
const CellKernels kGru = cell_kernels<Gru>();

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
