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

  RNN_INLINE static V x_part(const ForwardUnits<S>& u, int gate) {
    return V::load(u.x_part + gate * kLanes<C>) + V::load(u.bias + gate * kLanes<C>);
  }
  RNN_INLINE static C* h_part(const ForwardUnits<S>& u, int gate) { return u.h_part + gate * kLanes<C>; }

  RNN_INLINE static void forward_gates(const ForwardUnits<S>& u) {
    const V r = cells::gru_gate<V>(x_part(u, 0), V::load(h_part(u, 0)));
    const V z = cells::gru_gate<V>(x_part(u, 1), V::load(h_part(u, 1)));
    const V q = V::load(h_part(u, 2)) + V::load(u.bias + 3 * kLanes<C>);  // G3
    r.store(h_part(u, 0));
    z.store(h_part(u, 1));
    q.store(h_part(u, 2));
    if (u.gates == nullptr) return;
    store(u.gates, r, u.count);
    store(u.gates + u.gate_stride, z, u.count);
    store(u.gates + 3 * u.gate_stride, q, u.count);
  }

  RNN_INLINE static void forward_state(const ForwardUnits<S>& u) {
    const V n = cells::gru_new<V>(x_part(u, 2), V::load(h_part(u, 0)), V::load(h_part(u, 2)));
    const V h = cells::gru_state<V>(V::load(h_part(u, 1)), n, V::load(u.h_prev));
    store(u.h, h, u.count);  // the padding stays zero: pairs of operands reach into it
    if (u.carried != nullptr) h.store(u.carried);
    store(u.output, h, u.count);
    if (u.last) store(u.h_n, h, u.count);
    if (u.gates != nullptr) store(u.gates + 2 * u.gate_stride, n, u.count);
  }

  RNN_INLINE static void backward(const BackwardUnits<S>& u) {
    const auto saved = [&](int gate) __attribute__((always_inline)) {
      return load(u.gates + gate * u.gate_stride, u.count);
    };
    const cells::GruGates<V> gates{saved(0), saved(1), saved(2), saved(3)};
    V dh = V::load(u.dh_in);
    if (u.grad_output != nullptr) dh = dh + load(u.grad_output, u.count);
    const cells::GruBackward<V> grad = cells::gru_backward<V>(dh, gates, load(u.h_prev, u.count));
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
