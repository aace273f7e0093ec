// A GPU as Python describes it to plans: a dict of the members of cmik_cuda_chip.
#pragma once

#include "problem_of.hpp"

namespace cmik {

inline cmik_cuda_chip chip_from(const pybind11::dict& dict) {
  static const Field<cmik_cuda_chip> fields[] = {
      CMIK_FIELD(cmik_cuda_chip, capability), CMIK_FIELD(cmik_cuda_chip, processors),
      CMIK_FIELD(cmik_cuda_chip, block_bytes), CMIK_FIELD(cmik_cuda_chip, processor_bytes),
      CMIK_FIELD(cmik_cuda_chip, cache_bytes)};
  cmik_cuda_chip chip{};
  read_fields(dict, fields, chip);
  const pybind11::sequence table = dict["resident_clusters"];
  size_t size = 0;
  for (auto& of_size : chip.resident_clusters) {
    const pybind11::sequence row = table[size++];
    size_t threads = 0;
    for (int32_t& clusters : of_size) clusters = row[threads++].cast<int32_t>();
  }
  return chip;
}

inline pybind11::dict dict_from(const cmik_cuda_chip& chip) {
  pybind11::list table;
  for (const auto& of_size : chip.resident_clusters)
    table.append(pybind11::make_tuple(of_size[0], of_size[1], of_size[2]));
  pybind11::dict dict;
  dict["capability"] = chip.capability;
  dict["processors"] = chip.processors;
  dict["resident_clusters"] = pybind11::tuple(table);
  dict["block_bytes"] = chip.block_bytes;
  dict["processor_bytes"] = chip.processor_bytes;
  dict["cache_bytes"] = chip.cache_bytes;
  return dict;
}

}  // namespace cmik
