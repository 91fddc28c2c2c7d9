// What a torch tensor in Python says of its memory, without torch's headers: through the function table torch.Tensor
// offers for this (DLPack's exchange API), or through the tensor's attributes where there is none.
#pragma once

#include <pybind11/pybind11.h>

#include <cstring>
#include <string>

#include "../cpu/types.h"

namespace rnnkernels::python {

namespace py = pybind11;

struct TensorView {
  static constexpr int kMostDims = 3;

  void* data;
  cpu::Dtype dtype;
  int dims;
  int64_t sizes[kMostDims], strides[kMostDims];

  int64_t elements() const {
    int64_t count = 1;
    for (int i = 0; i < dims; ++i) count *= sizes[i];
    return count;
  }

  bool contiguous() const {
    int64_t expected = 1;
    for (int i = dims; i-- > 0; expected *= sizes[i])
      if (sizes[i] != 1 && strides[i] != expected) return false;
    return true;
  }
};

// An attribute of torch.Tensor that C code computes: that code is called directly. What an attribute costs counts,
// because a step asks for the version of every weight.
class TensorAttribute {
 public:
  explicit TensorAttribute(const char* name) : name_(name) {
    const py::object found = py::module_::import("torch").attr("Tensor").attr(name);
    if (Py_TYPE(found.ptr()) == &PyGetSetDescr_Type)
      getter_ = reinterpret_cast<PyGetSetDescrObject*>(found.ptr())->d_getset;
  }

  // Of a tensor that a TensorReader reads; null, with a Python error set, if it has none.
  py::object of(py::handle tensor) const {
    return py::reinterpret_steal<py::object>(getter_ != nullptr ? getter_->get(tensor.ptr(), getter_->closure)
                                                                : PyObject_GetAttrString(tensor.ptr(), name_));
  }

 private:
  const char* name_;
  const PyGetSetDef* getter_ = nullptr;
};

// Reads views. Only plain tensors and parameters: what a subclass or a transform wraps has no memory of its own.
class TensorReader {
 public:
  explicit TensorReader(bool use_exchange) {
    const py::module_ torch = py::module_::import("torch");
    tensor_ = torch.attr("Tensor");
    parameter_ = torch.attr("nn").attr("Parameter");
    is_negated_ = tensor_.attr("is_neg");
    const char* names[] = {"float32", "float64", "bfloat16", "float16"};  // in the order of Dtype
    for (int i = 0; i < 4; ++i) dtypes_[i] = torch.attr(names[i]);
    if (!use_exchange || !py::hasattr(tensor_, "__dlpack_c_exchange_api__")) return;
    const py::object capsule = tensor_.attr("__dlpack_c_exchange_api__");
    const auto* api = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (api == nullptr) throw py::error_already_set();
    if (api->major == 1) exchange_ = api->dltensor_from_py_object;
  }

  // False unless this is a dense tensor on the CPU of at most kMostDims dimensions and a type of types.h, whose values are what
  // its memory holds: not a lazily negated view or torch's tensor of zeros without memory. No Python error is left behind.
  bool read(py::handle object, TensorView* view) const {
    if (!is_plain(object)) return false;
    if (!(exchange_ != nullptr ? exchanged(object, view) : from_attributes(object, view))) return false;
    if (view->data == nullptr && view->elements() > 0) return false;
    const py::object negated = py::reinterpret_steal<py::object>(PyObject_CallOneArg(is_negated_.ptr(), object.ptr()));
    if (!negated) PyErr_Clear();
    return negated.ptr() == Py_False;
  }

  bool is_plain(py::handle object) const {
    return Py_TYPE(object.ptr()) == type(tensor_) || Py_TYPE(object.ptr()) == type(parameter_);
  }

 private:
  // As DLPack 1 lays them out.
  struct ExchangedTensor {
    void* data;
    int32_t device_type, device_index;
    int32_t dims;
    uint8_t type_code, type_bits;
    uint16_t type_lanes;
    const int64_t* sizes;
    const int64_t* strides;
    uint64_t byte_offset;
  };
  struct ExchangeApi {
    uint32_t major, minor;
    const void* previous;
    void (*allocate)();
    void (*managed_from_py_object)();
    void (*managed_to_py_object)();
    int (*dltensor_from_py_object)(void* object, ExchangedTensor* tensor);
  };
  static constexpr int kCpu = 1, kFloat = 2, kBfloat = 4;

  static PyTypeObject* type(const py::object& object) { return reinterpret_cast<PyTypeObject*>(object.ptr()); }

  bool exchanged(py::handle object, TensorView* view) const {
    ExchangedTensor tensor;
    if (exchange_(object.ptr(), &tensor) != 0) {
      PyErr_Clear();
      return false;
    }
    if (tensor.device_type != kCpu || tensor.dims > TensorView::kMostDims || tensor.type_lanes != 1) return false;
    if (tensor.type_code == kBfloat && tensor.type_bits == 16)
      view->dtype = cpu::Dtype::kBFloat16;
    else if (tensor.type_code == kFloat && tensor.type_bits == 16)
      view->dtype = cpu::Dtype::kFloat16;
    else if (tensor.type_code == kFloat && tensor.type_bits == 32)
      view->dtype = cpu::Dtype::kFloat32;
    else if (tensor.type_code == kFloat && tensor.type_bits == 64)
      view->dtype = cpu::Dtype::kFloat64;
    else
      return false;
    view->data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    view->dims = tensor.dims;
    for (int i = 0; i < tensor.dims; ++i) {
      view->sizes[i] = tensor.sizes[i];
      view->strides[i] = tensor.strides[i];
    }
    return true;
  }

  bool from_attributes(py::handle object, TensorView* view) const {
    try {
      if (!object.attr("is_cpu").cast<bool>() || object.attr("is_sparse").cast<bool>()) return false;
      const py::object dtype = object.attr("dtype");
      int index = 0;
      while (index < 4 && !dtype.is(dtypes_[index])) ++index;
      const py::tuple sizes = object.attr("shape"), strides = object.attr("stride")();
      if (index == 4 || sizes.size() > TensorView::kMostDims) return false;
      view->dtype = cpu::Dtype(index);
      view->data = reinterpret_cast<void*>(object.attr("data_ptr")().cast<uintptr_t>());
      view->dims = int(sizes.size());
      for (int i = 0; i < view->dims; ++i) {
        view->sizes[i] = sizes[size_t(i)].cast<int64_t>();
        view->strides[i] = strides[size_t(i)].cast<int64_t>();
      }
      return true;
    } catch (const py::error_already_set&) {
      return false;
    }
  }

  py::object tensor_, parameter_, is_negated_, dtypes_[4];
  int (*exchange_)(void*, ExchangedTensor*) = nullptr;
};

}  // namespace rnnkernels::python
