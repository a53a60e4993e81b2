// Error handling of the functions that Rust calls: an exception becomes a message.

#pragma once

#include <c10/util/Exception.h>

#include <cstdio>
#include <exception>

// Runs `work`. Returns 0 on success, else 1 and the reason in `message`.
template <typename Work>
int guarded(char* message, size_t capacity, Work work) noexcept {
  try {
    work();
    return 0;
  } catch (const c10::Error& error) {
    std::snprintf(message, capacity, "%s", error.what_without_backtrace());
  } catch (const std::exception& error) {
    std::snprintf(message, capacity, "%s", error.what());
  } catch (...) {
    std::snprintf(message, capacity, "unknown error");
  }
  return 1;
}
