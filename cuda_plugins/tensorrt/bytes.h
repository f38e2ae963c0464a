// Numbers, strings and lists as bytes, and back with every bound checked.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace swinopt {

class Writer {
public:
    template <class T>
    void number(T value) {
        bytes_.append(reinterpret_cast<char const*>(&value), sizeof value);
    }

    void string(std::string const& value) {
        number(static_cast<std::uint32_t>(value.size()));
        bytes_ += value;
    }

    void ints(std::vector<std::int32_t> const& values) {
        number(static_cast<std::uint32_t>(values.size()));
        for (std::int32_t const value : values) number(value);
    }

    std::string const& bytes() const { return bytes_; }

private:
    std::string bytes_;
};

// Every method returns false, and leaves its argument alone, where there are too few bytes left.
class Reader {
public:
    Reader(void const* data, std::size_t size) : next_(static_cast<char const*>(data)), left_(data ? size : 0) {}

    template <class T>
    bool number(T& value) {
        if (left_ < sizeof value) return false;
        std::memcpy(&value, next_, sizeof value);
        skip(sizeof value);
        return true;
    }

    bool string(std::string& value) {
        std::uint32_t count = 0;
        if (!number(count) || count > left_) return false;
        value.assign(next_, count);
        skip(count);
        return true;
    }

    bool ints(std::vector<std::int32_t>& values) {
        std::uint32_t count = 0;
        if (!number(count) || count > left_ / sizeof(std::int32_t)) return false;
        values.resize(count);
        if (count) std::memcpy(values.data(), next_, count * sizeof(std::int32_t));
        skip(count * sizeof(std::int32_t));
        return true;
    }

    bool at_end() const { return left_ == 0; }

private:
    void skip(std::size_t count) {
        next_ += count;
        left_ -= count;
    }

    char const* next_;
    std::size_t left_;
};

}  // namespace swinopt
