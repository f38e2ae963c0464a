#include "state.h"

#include <algorithm>
#include <cstdio>

#include "bytes.h"

namespace swinopt {
namespace {

// 1: without what Op::tune gave. 2: of Linear without float32, as in 1; what an op has had since then falls back.
constexpr std::uint32_t kFormat = 3, kOldestFormat = 1;

}  // namespace

State::State(Op const& op) : op_(&op), values_(op.attributes.size()), given_(op.attributes.size()) {
    for (std::size_t i = 0; i < values_.size(); ++i) {
        Attribute const& attribute = op.attributes[i];
        if (attribute.kind == Kind::kInt) values_[i].ints = {static_cast<std::int32_t>(attribute.fallback)};
        if (attribute.kind == Kind::kFloat) values_[i].number = attribute.fallback;
    }
}

bool State::set_ints(std::string const& name, std::vector<std::int32_t> ints) {
    if (name == kInputsPresent) {
        present_ = std::move(ints);
        return true;
    }
    for (std::size_t i = 0; i < values_.size(); ++i) {
        Attribute const& attribute = op_->attributes[i];
        if (name != attribute.name || attribute.kind == Kind::kFloat) continue;
        if (attribute.kind == Kind::kInt && ints.size() != 1) return false;
        values_[i].ints = std::move(ints);
        given_[i] = true;
        return true;
    }
    return false;
}

bool State::set_number(std::string const& name, float number) {
    for (std::size_t i = 0; i < values_.size(); ++i) {
        if (name != op_->attributes[i].name || op_->attributes[i].kind != Kind::kFloat) continue;
        values_[i].number = number;
        given_[i] = true;
        return true;
    }
    return false;
}

std::string State::complete() const {
    for (std::size_t i = 0; i < values_.size(); ++i)
        if (op_->attributes[i].required && !given_[i])
            return std::string("the attribute ") + op_->attributes[i].name + " is missing";
    if (!present_.empty()) {
        std::string const given = swinopt::text(present_.data(), static_cast<int>(present_.size()));
        bool fits = present_.size() == op_->inputs.size();
        for (std::size_t i = 0; fits && i < present_.size(); ++i)
            fits = present_[i] == 1 || (present_[i] == 0 && static_cast<int>(i) >= op_->required_inputs);
        if (!fits)
            return std::string(kInputsPresent) + " is " + given + " and should have a 0 or 1 for each of the " +
                   std::to_string(op_->inputs.size()) + " inputs, the first " + std::to_string(op_->required_inputs) +
                   " of them 1";
    }
    return op_->check_values(values_);
}

std::vector<int> State::positions(int count) const {
    std::vector<int> result;
    int next = 0;
    for (std::size_t i = 0; i < op_->inputs.size(); ++i) {
        bool const present = present_.empty() ? static_cast<int>(i) < count : present_[i] != 0;
        result.push_back(present ? next++ : -1);
    }
    if (next != count || count < op_->required_inputs) return {};
    return result;
}

void State::settle(int count) {
    std::vector<int> const found = positions(count);
    if (found.empty()) return;
    present_.clear();
    for (int const position : found) present_.push_back(position >= 0);
}

int State::input_count() const { return static_cast<int>(std::count(present_.begin(), present_.end(), 1)); }

std::string State::text() const {
    std::string result;
    for (std::size_t i = 0; i < values_.size(); ++i) {
        Attribute const& attribute = op_->attributes[i];
        std::vector<std::int32_t> const& ints = values_[i].ints;
        result += (i ? " " : "") + std::string(attribute.name) + "=";
        if (attribute.kind == Kind::kFloat) {
            char number[32];
            std::snprintf(number, sizeof number, "%.9g", static_cast<double>(values_[i].number));
            result += number;
        } else {
            result += attribute.kind == Kind::kInt ? std::to_string(ints[0])
                                                   : swinopt::text(ints.data(), static_cast<int>(ints.size()));
        }
    }
    if (!present_.empty())
        result += std::string(" ") + kInputsPresent + "=" +
                  swinopt::text(present_.data(), static_cast<int>(present_.size()));
    return result;
}

std::string State::write() const {
    Writer writer;
    writer.number(kFormat);
    writer.string(op_->name);
    writer.number(static_cast<std::uint32_t>(values_.size()));
    for (Value const& value : values_) {
        writer.ints(value.ints);
        writer.number(value.number);
    }
    writer.ints(present_);
    writer.string(tuned);
    return writer.bytes();
}

std::optional<State> State::read(Op const& op, void const* data, std::size_t size, std::string& problem) {
    Reader reader(data, size);
    std::uint32_t format = 0, count = 0;
    std::string name;
    if (!reader.number(format)) {
        problem = "the serialized plugin is truncated";
        return std::nullopt;
    }
    if (format < kOldestFormat || format > kFormat) {
        problem = "the serialized plugin has format " + std::to_string(format) +
                  ", and this library reads up to format " + std::to_string(kFormat) +
                  "; build the engine again, or load the library it was built with";
        return std::nullopt;
    }
    State state(op);
    state.is_new_ = false;
    bool whole = reader.string(name) && reader.number(count) && name == op.name &&
                 (format < kFormat ? count <= state.values_.size() : count == state.values_.size());
    for (std::size_t i = 0; whole && i < count; ++i) {
        Value& value = state.values_[i];
        whole = reader.ints(value.ints) && reader.number(value.number) &&
                (op.attributes[i].kind != Kind::kInt || value.ints.size() == 1);
        state.given_[i] = true;
    }
    whole = whole && reader.ints(state.present_) &&
            (format == kOldestFormat || reader.string(state.tuned)) && reader.at_end();
    problem = whole ? state.complete() : std::string("the serialized plugin is damaged: it is no whole ") + op.name;
    if (!problem.empty()) return std::nullopt;
    return state;
}

}  // namespace swinopt
