// The persistent schedules: one launch for the whole sequence.
#include "cuda_schedules.h"

namespace rnnkernels::cuda {
namespace {

// Room for a plan's packed weights, and the arguments to fill it.
struct Packed {
  std::vector<Tensor> tensors;
  PackArguments arguments{};

  Packed(const Layer& layer, const Plan& plan) {
    arguments.partition = plan.partition;
    arguments.hidden = layer.sequence.hidden;
    arguments.directions = layer.sequence.directions;
    for (int d = 0; d < layer.sequence.directions; ++d) {
      tensors.push_back(layer.empty({packed_bytes(layer.request, plan)}, ScalarType::Byte));
      arguments.w_hh[d] = layer.weight(d, 1).const_data_ptr();
      arguments.packed[d] = tensors.back().mutable_data_ptr();
    }
  }
};

// Where CTAs of a grid meet; nothing for other schedules.
struct Meeting {
  Tensor exchange, flags;

  Meeting(const Layer& layer, const Plan& plan) : Meeting(layer, workspace(layer.request, plan)) {}

 private:
  Meeting(const Layer& layer, const Workspace& room)
      : exchange(layer.empty({room.exchange_bytes}, ScalarType::Byte)), flags(layer.empty({room.flags}, ScalarType::Int)) {}
};

}  // namespace

void persistent_forward(const Layer& layer, const Plan& plan, const std::vector<Tensor>& projected, bool save, Outputs& out) {
  const Packed packed(layer, plan);
  ForwardArguments a{};
  a.sequence = layer.sequence;
  a.partition = plan.partition;
  for (int d = 0; d < layer.sequence.directions; ++d) {
    a.projected[d] = projected[size_t(d)].const_data_ptr<float>();
    a.packed[d] = packed.arguments.packed[d];
    if (layer.flags.has_biases) {
      a.b_ih[d] = layer.weight(d, 2).const_data_ptr();
      a.b_hh[d] = layer.weight(d, 3).const_data_ptr();
    }
  }
  a.h0 = layer.h0.const_data_ptr();
  a.output = out.output.mutable_data_ptr();
  a.h_n = out.h_n.mutable_data_ptr();
  if (out.c_n.has_value()) {
    a.c0 = layer.c0->const_data_ptr();
    a.c_n = out.c_n->mutable_data_ptr();
  }
  if (save) {
    a.gates = out.gates.mutable_data_ptr();
    if (out.cells.has_value()) a.cells = out.cells->mutable_data_ptr<float>();
  }
  const Meeting meeting(layer, plan);
  a.exchange = meeting.exchange.mutable_data_ptr();
  a.flags = static_cast<uint32_t*>(meeting.flags.mutable_data_ptr());
  launch(layer.request, plan, packed.arguments, a, layer.stream);
}

void persistent_backward(const Layer& layer, const Plan& plan, const Gradients& gradients, const Saved& saved,
                         bool needs_weights, BackwardResults& results) {
  const Sequence& s = layer.sequence;
  const int64_t slices = (s.batch + plan.rows - 1) / plan.rows;
  const Packed packed(layer, plan);
  BackwardArguments a{};
  a.sequence = s;
  a.partition = plan.partition;
  for (int d = 0; d < s.directions; ++d) a.packed[d] = packed.arguments.packed[d];
  if (gradients.output.has_value()) {
    a.grad_output = gradients.output->const_data_ptr();
    a.grad_output_step = gradients.step();
    a.grad_output_row = int(gradients.row());
  }
  if (gradients.h_n.has_value()) a.grad_h_n = gradients.h_n->const_data_ptr();
  if (gradients.c_n.has_value()) a.grad_c_n = gradients.c_n->const_data_ptr();
  a.h0 = layer.h0.const_data_ptr();
  a.output = saved.output.const_data_ptr();
  a.gates = saved.gates.const_data_ptr();
  a.grad_h0 = results.h0.mutable_data_ptr();
  if (saved.cells.has_value()) {
    a.c0 = layer.c0->const_data_ptr();
    a.cells = saved.cells->const_data_ptr<float>();
    a.grad_c0 = results.c0->mutable_data_ptr();
  }
  a.grad_gates = results.grad_gates.mutable_data_ptr();
  if (results.grad_q.has_value()) a.grad_q = results.grad_q->mutable_data_ptr();
  const Tensor grad_bias = layer.empty({s.directions, slices, kSavedGates, s.hidden}, ScalarType::Float);
  a.grad_bias = grad_bias.mutable_data_ptr<float>();
  const Meeting meeting(layer, plan);
  a.exchange = meeting.exchange.mutable_data_ptr();
  launch(layer.request, plan, packed.arguments, a, layer.stream);

  if (!needs_weights || !layer.flags.has_biases) return;
  BiasGradientsArguments bias{s.hidden, int(slices), a.grad_bias, {}, {}};
  for (int d = 0; d < s.directions; ++d) {
    for (void** to : {&bias.b_ih[d], &bias.b_hh[d]}) {
      results.biases.push_back(layer.empty({int64_t(layer.flags.gates()) * s.hidden}));
      *to = results.biases.back().mutable_data_ptr();
    }
  }
  bias_gradients(layer.flags.cell, layer.request.product, s.directions, bias, layer.stream);
}

}  // namespace rnnkernels::cuda
