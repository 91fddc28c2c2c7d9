// What the CUDA operators do with tensors, through torch's stable ABI: checks, views, products.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#if defined(RNNKERNELS_EMULATED)
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#else
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#endif
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "../cuda/recurrence.h"

namespace rnnkernels::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;
using OptionalTensor = std::optional<Tensor>;

// ---- The machine: a GPU, or in the tests its emulation, whose tensors are in the computer's memory --------------------

#if defined(RNNKERNELS_EMULATED)
#define RNNKERNELS_DISPATCH_KEY CPU
inline constexpr auto addmm_out = aoti_torch_cpu_addmm_out;
struct DeviceGuard {
  explicit DeviceGuard(int) {}
};
inline bool is_here(const Tensor& tensor) { return tensor.is_cpu(); }
inline Stream current_stream(int) { return nullptr; }
#else
#define RNNKERNELS_DISPATCH_KEY CUDA
inline constexpr auto addmm_out = aoti_torch_cuda_addmm_out;
using torch::stable::accelerator::DeviceGuard;
inline bool is_here(const Tensor& tensor) { return tensor.is_cuda(); }
inline Stream current_stream(int device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<Stream>(stream);
}
#endif

// ---- Checks and views ------------------------------------------------------------------------------------------------

inline std::string to_string(const Sizes& sizes) {
  std::string text = "(";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  return text + ")";
}

inline Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Sizes(sizes.begin(), sizes.end());
}

inline void check_tensor(const char* name, const Tensor& tensor, const Tensor& like, ScalarType dtype, const Sizes& sizes) {
  STD_TORCH_CHECK(is_here(tensor) && tensor.get_device_index() == like.get_device_index(), name,
                  " must be on the same CUDA device as input");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " has another dtype than input asks for");
  STD_TORCH_CHECK(sizes_of(tensor) == sizes, name, " must have shape ", to_string(sizes), ", got ", to_string(sizes_of(tensor)));
}

inline Tensor dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

// Adjacent elements, and rows an int apart.
inline Tensor as_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  const bool readable = tensor.stride(last) == 1 && tensor.stride(last - 1) < std::numeric_limits<int>::max() / 64;
  return readable ? tensor : dense(tensor);
}

inline Tensor shaped(const Tensor& tensor, const Sizes& sizes) {
  return torch::stable::view(tensor, {sizes.data(), sizes.size()});
}
inline Tensor of_direction(const Tensor& all, int d) { return torch::stable::select(all, 0, d); }
inline Tensor columns(Tensor matrix, int64_t first, int64_t count) { return torch::stable::narrow(matrix, 1, first, count); }
inline Tensor first_rows(Tensor tensor, int64_t count) { return torch::stable::narrow(tensor, 0, 0, count); }
inline Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }

// ---- Products, by torch's library ------------------------------------------------------------------------------------

// An operator of torch's that returns one tensor.
template <class... Arguments>
Tensor call(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// a b, left in `dtype`, which is a's own or float32.
inline Tensor product_in(ScalarType dtype, const Tensor& a, const Tensor& b) {
  if (a.scalar_type() == dtype) return call("aten::mm", "", a, b);
  return call("aten::mm", "dtype", a, b, dtype);
}

// out = a b of matrices, or of batches of them ("aten::bmm"); out is of a's dtype or float32. Allocates nothing.
inline void multiply_into(const char* name, const Tensor& out, const Tensor& a, const Tensor& b) {
  if (a.scalar_type() == out.scalar_type()) {
    call(name, "out", a, b, out);
  } else {
    call(name, "dtype_out", a, b, out.scalar_type(), out);
  }
}

// a + b c. Not through the dispatcher, to which there is no way for its scalars.
inline Tensor addmm(const Tensor& a, const Tensor& b, const Tensor& c) {
  const Tensor result = torch::stable::empty_like(a);
  TORCH_ERROR_CODE_CHECK(addmm_out(result.get(), a.get(), b.get(), c.get(), 1.0, 1.0));
  return result;
}

// The columns' sums (C) of a matrix (R, C), added and left in `dtype`.
inline Tensor column_sums(const Tensor& matrix, ScalarType dtype) {
  const int64_t rows = 0;
  return torch::stable::sum(matrix, torch::headeronly::IntHeaderOnlyArrayRef(&rows, 1), false, dtype);
}

}  // namespace rnnkernels::cuda
