// Scratch memory that is not cleared before it is written.
#pragma once
#include <memory>
#include <new>
#include <utility>
#include <vector>

template <class T> struct Unset : std::allocator<T> {
  template <class U> struct rebind {
    typedef Unset<U> other;
  };
  template <class U> void construct(U* at) noexcept { ::new ((void*)at) U; }
  template <class U, class... From> void construct(U* at, From&&... from) { ::new ((void*)at) U(std::forward<From>(from)...); }
};

template <class T> using Room = std::vector<T, Unset<T>>;
using Floats = Room<float>;
