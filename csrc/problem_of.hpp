// A call as Python says it: a dict that has its numbers by the names of cmik_problem and, for a
// GPU, one by those of cmik_cuda_call. Dicts, because so many arguments by keyword cost 2.4 us a
// call more than by position, and in a dict 0.7 us.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <type_traits>

#include "cmikernels.h"

namespace cmik {

template <class X>
X number_from(PyObject* number) {
  if constexpr (std::is_pointer_v<X>)
    return static_cast<X>(PyLong_AsVoidPtr(number));
  else if constexpr (std::is_floating_point_v<X>)
    return PyFloat_AsDouble(number);
  else
    return static_cast<X>(PyLong_AsLongLong(number));
}

// A member of a struct, and the name under which a dict has it.
template <class Struct>
struct Field {
  PyObject* name;
  void (*set)(Struct&, PyObject* number);
};

template <auto member, class Struct, class X>
Field<Struct> make_field(const char* name, X Struct::*) {
  return {PyUnicode_InternFromString(name),
          [](Struct& all, PyObject* number) { all.*member = number_from<X>(number); }};
}
#define CMIK_FIELD(Struct, name) cmik::make_field<&Struct::name>(#name, &Struct::name)

template <class Struct, size_t N>
void read_fields(const pybind11::dict& call, const Field<Struct> (&fields)[N], Struct& into) {
  for (const Field<Struct>& field : fields) {
    PyObject* number = PyDict_GetItemWithError(call.ptr(), field.name);
    if (!number && !PyErr_Occurred()) PyErr_SetObject(PyExc_KeyError, field.name);
    if (number) field.set(into, number);
    if (PyErr_Occurred()) throw pybind11::error_already_set();
  }
}

// All of the problem but `threads`. What else the dict has is left to the caller.
inline cmik_problem problem_of(const pybind11::dict& call) {
  static const Field<cmik_problem> fields[] = {
      CMIK_FIELD(cmik_problem, features),       CMIK_FIELD(cmik_problem, rows),
      CMIK_FIELD(cmik_problem, channels),       CMIK_FIELD(cmik_problem, row_stride),
      CMIK_FIELD(cmik_problem, channel_stride), CMIK_FIELD(cmik_problem, classes),
      CMIK_FIELD(cmik_problem, order),          CMIK_FIELD(cmik_problem, offsets),
      CMIK_FIELD(cmik_problem, centroids),      CMIK_FIELD(cmik_problem, incoming),
      CMIK_FIELD(cmik_problem, temperature),    CMIK_FIELD(cmik_problem, weight),
      CMIK_FIELD(cmik_problem, value),          CMIK_FIELD(cmik_problem, gradient),
      CMIK_FIELD(cmik_problem, means),          CMIK_FIELD(cmik_problem, dtype),
      CMIK_FIELD(cmik_problem, reduction),
  };
  cmik_problem problem{};
  read_fields(call, fields, problem);
  return problem;
}

}  // namespace cmik
