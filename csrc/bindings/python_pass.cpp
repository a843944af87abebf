// Layers, BatchNorms and activations in a step of training, by the quantizers' own attributes.
//
// What a quantizer does in a step is decided in Python and arrives as a `truequant.fake.steps.Step`; the functions read no more
// than state from the dictionaries of modules. Where one answers NotImplemented it has changed nothing.
#include "python_calls.h"
#include "tensors.h"

namespace truequant {
namespace {

struct Names {
  PyObject* calibrated = PyUnicode_InternFromString("_calibrated");
  PyObject* buffers = PyUnicode_InternFromString("_buffers");
  PyObject* modules = PyUnicode_InternFromString("_modules");
  PyObject* observer = PyUnicode_InternFromString("observer");
  PyObject* shift = PyUnicode_InternFromString("shift");
  PyObject* group = PyUnicode_InternFromString("group");
  PyObject* running_mean = PyUnicode_InternFromString("running_mean");
  PyObject* running_var = PyUnicode_InternFromString("running_var");
  PyObject* weight = PyUnicode_InternFromString("weight");
  PyObject* bias = PyUnicode_InternFromString("bias");
  PyObject* dict = PyUnicode_InternFromString("__dict__");
};

const Names& names() {
  static const Names all;
  return all;
}

// A reference that is given back.
struct Owned {
  PyObject* object;
  explicit Owned(PyObject* object) : object(object) {
    if (object == nullptr) PyErr_Clear();
  }
  ~Owned() { Py_XDECREF(object); }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
};

bool is(PyObject* dictionary, PyObject* name, PyObject* value) { return PyDict_GetItem(dictionary, name) == value; }

// A `truequant.fake.steps.Step`: its fields, in their order.
class Step {
 public:
  explicit Step(PyObject* step) : step_(step) {}
  bool is_known() const { return PyTuple_Check(step_) && PyTuple_GET_SIZE(step_) == 3; }
  bool observes() const { return field(0) == Py_True; }
  PyObject* commits() const { return field(1); }
  PyObject* first() const { return field(2); }

 private:
  PyObject* field(Py_ssize_t k) const { return PyTuple_GET_ITEM(step_, k); }
  PyObject* step_;
};

// quantizer, observer, scheme, commits: what functions of one grid take of a FakeQuantize, whose dictionary this is.
bool write_grid(PyObject** args, PyObject* quantizer, const Step& step) {
  const Names& n = names();
  if (!PyDict_Check(quantizer) || !step.is_known()) return false;
  args[0] = PyDict_GetItem(quantizer, n.buffers);
  args[1] = Py_None;
  args[2] = PyDict_GetItem(quantizer, buffer_names().compiled_scheme);
  args[3] = step.commits();
  if (step.observes()) {
    PyObject* modules = PyDict_GetItem(quantizer, n.modules);
    PyObject* observer = modules == nullptr ? nullptr : PyDict_GetItem(modules, n.observer);
    if (observer == nullptr) return false;
    const Owned attributes(PyObject_GetAttr(observer, n.dict));
    args[1] = attributes.object == nullptr ? nullptr : PyDict_GetItem(attributes.object, n.buffers);
  }
  return args[0] != nullptr && args[1] != nullptr && args[2] != nullptr && PyTuple_CheckExact(args[2]);
}

// The scale that is read in a forward, of a quantizer that learns none.
PyObject* scale_in_force(PyObject* quantizer) {
  PyObject* buffers = buffers_in_force(quantizer);
  return buffers == nullptr ? nullptr : PyDict_GetItem(buffers, buffer_names().scale);
}

}  // namespace

PyObject* buffers_in_force(PyObject* quantizer) {
  if (!PyDict_Check(quantizer) || !is(quantizer, names().calibrated, Py_True) || !is(quantizer, names().shift, Py_None)) {
    return nullptr;
  }
  return PyDict_GetItem(quantizer, names().buffers);
}

// quantize(x, other, quantizer, step, clip, low, high)
//
// `fake_quantize` by the dictionary of a FakeQuantize; in its first step it only observes, and the result is None.
PyObject* quantize(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 7, "quantize takes 7 arguments, got ", count);
  const Step step(args[3]);
  PyObject* full[10] = {args[0], args[1], nullptr, nullptr, nullptr, nullptr, args[4], args[5], args[6], nullptr};
  if (!write_grid(full + 2, args[2], step)) return not_implemented();
  full[9] = step.first();
  return fake_quantize(nullptr, full, 10);
  END_HANDLE_TH_ERRORS
}

// quantize_norm(x, gamma, beta, running mean, running var, eps, momentum, quantizer, step, clip, low, high)
PyObject* quantize_norm(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 12, "quantize_norm takes 12 arguments, got ", count);
  const Step step(args[8]);
  PyObject* full[15] = {args[0], args[1], args[2], args[3], args[4], args[5], args[6]};
  if (!write_grid(full + 8, args[7], step)) return not_implemented();
  full[7] = step.first();
  for (int k = 0; k < 3; ++k) full[12 + k] = args[9 + k];
  return fake_quantize_norm(nullptr, full, 15);
  END_HANDLE_TH_ERRORS
}

// shifted_bias(bias, buffers, parameters, eps, reads, quantizer, free)
//
// `rounded_bias` with the BatchNorm of these buffers and parameters. reads: the dictionary of the quantizer of what the layer
// reads; quantizer: that of its weight, whose scale is the one of this forward.
PyObject* shifted_bias(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 7, "shifted_bias takes 7 arguments, got ", count);
  const Names& n = names();
  if (!PyDict_Check(args[1]) || !PyDict_Check(args[2])) return not_implemented();
  PyObject *scale = scale_in_force(args[5]), *reads = scale_in_force(args[4]);
  PyObject* full[9] = {args[0], PyDict_GetItem(args[1], n.running_mean), PyDict_GetItem(args[1], n.running_var),
                       PyDict_GetItem(args[2], n.weight), PyDict_GetItem(args[2], n.bias), args[3], reads, scale, args[6]};
  for (PyObject* argument : full) {
    if (argument == nullptr) return not_implemented();
  }
  if (full[1] == Py_None || full[2] == Py_None) return not_implemented();
  return rounded_bias(nullptr, full, 9);
  END_HANDLE_TH_ERRORS
}

// layer_operands(weight, bias, quantizer, step, reads)
//
// Weight and bias of a layer on their grids. quantizer: the dictionary of a WeightQuantizer; step: whose range is read from the
// weight where it observes; reads: the dictionary of the quantizer of what the layer reads, or None: the bias stays as it is
// then. bias may be None.
PyObject* layer_operands(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 5, "layer_operands takes 5 arguments, got ", count);
  PyObject *quantizer = args[2], *reads = nullptr, *scale = scale_in_force(quantizer);
  const Step step(args[3]);
  if (scale == nullptr || !step.is_known()) return not_implemented();
  PyObject *group = PyDict_GetItem(quantizer, names().group), *scheme = PyDict_GetItem(quantizer, buffer_names().compiled_scheme);
  if (group == nullptr || scheme == nullptr || !PyTuple_CheckExact(scheme)) return not_implemented();
  const bool rounds = args[1] != Py_None && args[4] != Py_None;
  if (rounds && (reads = scale_in_force(args[4])) == nullptr) return not_implemented();
  PyObject* of_weight[5] = {args[0], scale, scheme, step.observes() ? Py_True : Py_False, group};
  const Owned weight(fake_quantize_weight(nullptr, of_weight, 5));
  if (weight.object == nullptr || weight.object == Py_NotImplemented) return Py_XNewRef(weight.object);
  if (!rounds) return PyTuple_Pack(2, weight.object, args[1]);
  static PyObject* const zero = PyFloat_FromDouble(0.0);
  PyObject* of_bias[9] = {args[1], Py_None, Py_None, Py_None, Py_None, zero, reads, scale, Py_False};
  const Owned bias(rounded_bias(nullptr, of_bias, 9));
  if (bias.object == nullptr || bias.object == Py_NotImplemented) return Py_XNewRef(bias.object);
  return PyTuple_Pack(2, weight.object, bias.object);
  END_HANDLE_TH_ERRORS
}

}  // namespace truequant
