// All that a plugin remembers: the attributes of its op, which inputs the op has, and what was measured while the
// engine was built. No TensorRT in here.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "op.h"

namespace swinopt {

class State {
public:
    // Attributes at their fallback, required ones empty; set_ints(), set_number() and then complete() make it usable.
    explicit State(Op const& op);

    // The name of a further field beside the attributes: one 0 or 1 for each input of the op. A TensorRT network has no
    // absent inputs, so that the present ones are packed and this field tells which they are.
    static constexpr char const* kInputsPresent = "inputs_present";

    // False if the op has no attribute of this name and kind. set_ints takes kInputsPresent, too.
    bool set_ints(std::string const& name, std::vector<std::int32_t> ints);
    bool set_number(std::string const& name, float number);

    // What is missing or wrong; empty if nothing is.
    std::string complete() const;

    Op const& op() const { return *op_; }
    Values const& values() const { return values_; }

    // For each input of the op its position among `count` packed ones, or -1 where it is absent. Empty if `count`
    // inputs do not fit; without inputs_present they are the first inputs of the op.
    std::vector<int> positions(int count) const;

    // Remembers that there are `count` inputs, if that many fit: from then on they are part of the bytes, too.
    void settle(int count);
    // How many inputs there are; 0 where nobody has said so yet.
    int input_count() const;

    // What Op::tune gave; nothing where shapes are dynamic or the op has nothing to tune.
    std::string tuned;
    // Whether the plugin was not read from an engine: what is measured when an engine runs is measured too late.
    bool is_new() const { return is_new_; }

    // "window_size=[7, 7] shift_size=[0, 0] num_heads=4 ..."
    std::string text() const;

    // As bytes: a format number, then all of the above. read() gives nothing, and says why in `problem`, for bytes that
    // are too few, too many, of another op, or of a format that this library does not read.
    std::string write() const;
    static std::optional<State> read(Op const& op, void const* data, std::size_t size, std::string& problem);

private:
    Op const* op_;
    Values values_;
    std::vector<bool> given_;
    std::vector<std::int32_t> present_;
    bool is_new_ = true;
};

}  // namespace swinopt
