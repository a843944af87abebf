// Nodes of the graph, as this version of torch holds them.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <memory>
#include <type_traits>
#include <utility>

namespace truequant {

// By an intrusive pointer, before torch 2.13 by a shared one.
using NodePointer = std::decay_t<decltype(std::declval<const at::TensorBase&>().grad_fn())>;

template <class P>
struct NodeMaker;
template <class N>
struct NodeMaker<std::shared_ptr<N>> {
  template <class T, class... Args>
  static std::shared_ptr<T> make(Args&&... args) {
    return std::make_shared<T>(std::forward<Args>(args)...);
  }
};
template <class N, class Null>
struct NodeMaker<c10::intrusive_ptr<N, Null>> {
  template <class T, class... Args>
  static c10::intrusive_ptr<T> make(Args&&... args) {
    return c10::make_intrusive<T>(std::forward<Args>(args)...);
  }
};

// Makes `y` the result of a node T.
template <class T, class... Args>
void set_node(const at::Tensor& y, Args&&... args) {
  torch::autograd::set_history(y, NodeMaker<NodePointer>::make<T>(std::forward<Args>(args)...));
}

}  // namespace truequant
