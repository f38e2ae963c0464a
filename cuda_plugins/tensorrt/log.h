// Messages to whoever runs TensorRT, through its own logger.
#pragma once

#include <string>

namespace swinopt {

// To the logger of the TensorRT that is loaded, or to stderr where there is none yet. Never throws.
void log_error(std::string const& message) noexcept;

}  // namespace swinopt
