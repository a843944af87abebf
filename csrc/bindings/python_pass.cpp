// What a quantizer does in a step of training, led by its own attributes.
//
// The functions read the dictionaries of modules as `truequant.fake` has them, which asks the same questions in Python where one
// of these answers NotImplemented: it has changed nothing then.
#include <torch/csrc/autograd/function.h>

#include "python_calls.h"
#include "tensors.h"

namespace truequant {
namespace {

struct Names {
  PyObject* training = PyUnicode_InternFromString("training");
  PyObject* quantizing = PyUnicode_InternFromString("quantizing");
  PyObject* observing = PyUnicode_InternFromString("observing");
  PyObject* calibrated = PyUnicode_InternFromString("_calibrated");
  PyObject* owns_clock = PyUnicode_InternFromString("owns_clock");
  PyObject* clock = PyUnicode_InternFromString("clock");
  PyObject* enabled = PyUnicode_InternFromString("enabled");
  PyObject* state = PyUnicode_InternFromString("state");
  PyObject* step = PyUnicode_InternFromString("step");
  PyObject* seen_step = PyUnicode_InternFromString("_seen_step");
  PyObject* buffers = PyUnicode_InternFromString("_buffers");
  PyObject* modules = PyUnicode_InternFromString("_modules");
  PyObject* observer = PyUnicode_InternFromString("observer");
  PyObject* marking = PyUnicode_InternFromString("marking");
  PyObject* recorder = PyUnicode_InternFromString("recorder");
  PyObject* shift = PyUnicode_InternFromString("shift");
  PyObject* is_held = PyUnicode_InternFromString("is_held");
  PyObject* reads_range = PyUnicode_InternFromString("reads_range");
  PyObject* group = PyUnicode_InternFromString("group");
  PyObject* running_mean = PyUnicode_InternFromString("running_mean");
  PyObject* running_var = PyUnicode_InternFromString("running_var");
  PyObject* weight = PyUnicode_InternFromString("weight");
  PyObject* bias = PyUnicode_InternFromString("bias");
  PyObject* dict = PyUnicode_InternFromString("__dict__");
  PyObject* hooks[4] = {
      PyUnicode_InternFromString("_forward_hooks"), PyUnicode_InternFromString("_forward_pre_hooks"),
      PyUnicode_InternFromString("_backward_hooks"), PyUnicode_InternFromString("_backward_pre_hooks")};
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

bool attribute_is(PyObject* object, PyObject* name, PyObject* value) {
  return Owned(PyObject_GetAttr(object, name)).object == value;
}

bool is_hooked(PyObject* module) {
  for (PyObject* name : names().hooks) {
    PyObject* hooks = PyDict_GetItem(module, name);
    if (hooks == nullptr || !PyDict_Check(hooks) || PyDict_Size(hooks) != 0) return true;
  }
  return false;
}

enum class Mode { kTraining, kFrozen, kOther };

Mode mode_of(PyObject* clock) {
  const Owned state(PyObject_GetAttr(clock, names().state));
  if (state.object == nullptr || !PyUnicode_Check(state.object)) return Mode::kOther;
  if (PyUnicode_CompareWithASCIIString(state.object, "training") == 0) return Mode::kTraining;
  return PyUnicode_CompareWithASCIIString(state.object, "frozen") == 0 ? Mode::kFrozen : Mode::kOther;
}

// A quantizer that trains with a range, whatever its kind: false where it does not, or where somebody wants to see it.
bool is_at_work(PyObject* quantizer, PyObject*& clock, Mode& mode) {
  const Names& n = names();
  if (!PyDict_Check(quantizer) || !is(quantizer, n.training, Py_True) || !is(quantizer, n.quantizing, Py_True) ||
      !is(quantizer, n.calibrated, Py_True) || is_hooked(quantizer)) {
    return false;
  }
  clock = PyDict_GetItem(quantizer, n.clock);
  if (clock == nullptr || !attribute_is(clock, n.enabled, Py_True)) return false;
  mode = mode_of(clock);
  PyObject* scheme = PyDict_GetItem(quantizer, buffer_names().compiled_scheme);
  return mode != Mode::kOther && scheme != nullptr && PyTuple_CheckExact(scheme);
}

// A quantizer of activations within a pass: what the functions of one grid take, in their order.
class Pass {
 public:
  // quantizer: the dictionary of a FakeQuantize; local: what this thread's forward is doing.
  bool read(PyObject* quantizer, PyObject* local) {
    const Names& n = names();
    Mode mode;
    PyObject* clock;
    if (!is_at_work(quantizer, clock, mode) || !is(quantizer, n.owns_clock, Py_False) ||
        !attribute_is(local, n.marking, Py_False) || !attribute_is(local, n.recorder, Py_None)) {
      return false;
    }
    quantizer_ = quantizer;
    buffers_ = PyDict_GetItem(quantizer, n.buffers);
    scheme_ = PyDict_GetItem(quantizer, buffer_names().compiled_scheme);
    PyObject* modules = PyDict_GetItem(quantizer, n.modules);
    PyObject* observer = modules == nullptr ? nullptr : PyDict_GetItem(modules, n.observer);
    if (buffers_ == nullptr || observer == nullptr) return false;
    const Owned attributes(PyObject_GetAttr(observer, n.dict));
    observer_ = attributes.object == nullptr ? nullptr : PyDict_GetItem(attributes.object, n.buffers);
    // Counts may need other processes'.
    if (observer_ == nullptr || PyDict_Contains(observer_, buffer_names().counts) != 0) return false;
    observes_ = is(quantizer, n.observing, Py_True) && mode == Mode::kTraining &&
                torch::autograd::get_current_graph_task_id() == -1;
    if (!observes_) return true;
    const Owned step(PyObject_GetAttr(clock, n.step));
    PyObject* seen = PyDict_GetItem(quantizer, n.seen_step);
    if (step.object == nullptr || seen == nullptr) return false;
    const int same = PyObject_RichCompareBool(seen, step.object, Py_EQ);
    if (same < 0) PyErr_Clear();
    commits_ = same == 0;
    step_ = Py_NewRef(step.object);
    return same >= 0;
  }

  ~Pass() { Py_XDECREF(step_); }

  // quantizer, observer, scheme, commits.
  void write(PyObject** args) const {
    args[0] = buffers_;
    args[1] = observes_ ? observer_ : Py_None;
    args[2] = scheme_;
    args[3] = commits_ ? Py_True : Py_False;
  }

  // The result of a pass; what it saw belongs to the step.
  PyObject* finished(PyObject* result) const {
    if (result == nullptr || result == Py_NotImplemented || !commits_) return result;
    if (PyDict_SetItem(quantizer_, names().seen_step, step_) == 0) return result;
    Py_DECREF(result);
    return nullptr;
  }

 private:
  PyObject *quantizer_ = nullptr, *buffers_ = nullptr, *observer_ = nullptr, *scheme_ = nullptr, *step_ = nullptr;
  bool observes_ = false, commits_ = false;
};

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

// quantize(x, other, quantizer, local, clip, low, high)
//
// `fake_quantize` as a quantizer asks for it that trains within a model and has a range.
PyObject* quantize(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 7, "quantize takes 7 arguments, got ", count);
  Pass pass;
  if (!pass.read(args[2], args[3])) return not_implemented();
  PyObject* full[10] = {args[0], args[1], nullptr, nullptr, nullptr, nullptr, args[4], args[5], args[6], Py_False};
  pass.write(full + 2);
  return pass.finished(fake_quantize(nullptr, full, 10));
  END_HANDLE_TH_ERRORS
}

// quantize_norm(x, gamma, beta, running mean, running var, eps, momentum, quantizer, local, clip, low, high)
PyObject* quantize_norm(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 12, "quantize_norm takes 12 arguments, got ", count);
  Pass pass;
  if (!pass.read(args[7], args[8])) return not_implemented();
  PyObject* full[15] = {args[0], args[1], args[2], args[3], args[4], args[5], args[6], Py_False};
  pass.write(full + 8);
  for (int k = 0; k < 3; ++k) full[12 + k] = args[9 + k];
  return pass.finished(fake_quantize_norm(nullptr, full, 15));
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
  PyObject* clock;
  Mode mode;
  if (!is_at_work(args[5], clock, mode) || !PyDict_Check(args[1]) || !PyDict_Check(args[2])) return not_implemented();
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

// layer_operands(weight, bias, quantizer, reads)
//
// Weight and bias of a layer on their grids. quantizer: the dictionary of a WeightQuantizer that trains; reads: that of the
// quantizer of what the layer reads, or None: the bias stays as it is then. bias may be None.
PyObject* layer_operands(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 4, "layer_operands takes 4 arguments, got ", count);
  const Names& n = names();
  PyObject *quantizer = args[2], *clock, *reads = nullptr;
  Mode mode;
  if (!is_at_work(quantizer, clock, mode)) return not_implemented();
  PyObject* scale = scale_in_force(quantizer);
  PyObject* group = PyDict_GetItem(quantizer, n.group);
  const bool follows = mode == Mode::kTraining && is(quantizer, n.is_held, Py_False);
  if (scale == nullptr || group == nullptr || (follows && !is(quantizer, n.reads_range, Py_True))) return not_implemented();
  const bool rounds = args[1] != Py_None && args[3] != Py_None;
  if (rounds && (reads = scale_in_force(args[3])) == nullptr) return not_implemented();
  PyObject* scheme = PyDict_GetItem(quantizer, buffer_names().compiled_scheme);
  PyObject* of_weight[5] = {args[0], scale, scheme, follows ? Py_True : Py_False, group};
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
