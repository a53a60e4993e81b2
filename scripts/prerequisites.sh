#!/bin/sh
# Says in one line what this machine lacks to build the project, and the command that installs it.
set -u
cd "$(dirname "$0")/.." || exit 1

missing=
install=
lacks() { # WHAT COMMAND
    missing="${missing:+$missing, }$1"
    install="${install:+$install && }$2"
}

debian=
command -v c++ >/dev/null 2>&1 || debian="$debian g++"
command -v python3 >/dev/null 2>&1 || debian="$debian python3"
command -v cargo >/dev/null 2>&1 || command -v curl >/dev/null 2>&1 || debian="$debian curl"
[ -z "$debian" ] || lacks "${debian# }" "sudo apt-get install -y$debian"

needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
rustup="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y && . \"\$HOME/.cargo/env\""
if ! command -v cargo >/dev/null 2>&1; then
    lacks "cargo" "$rustup"
elif ! found=$(rustc --version 2>/dev/null); then
    lacks "the Rust toolchain that rust-toolchain.toml names" "rustup toolchain install"
else
    found=${found#rustc }
    found=${found%%[ -]*}
    oldest=$(printf '%s\n%s\n' "$needed" "$found" | sort -V | head -n 1)
    [ "$oldest" = "$needed" ] || lacks "Rust $needed or newer (this is $found)" "$rustup"
fi

[ -n "$missing" ] || exit 0
echo "missing: $missing. Install with: $install" >&2
exit 1
