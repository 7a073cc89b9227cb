# Sourced by the commands of this directory: says what the machine lacks, then installs it.
#
# Nothing is installed that is already there, and nothing before it has been named. Database
# servers are not installed on the machine at all: the harness unpacks them into a directory of
# its own.
# shellcheck shell=bash disable=SC2034

# Seconds since the epoch when the command began; each phase is named as it starts.
started=$(date +%s)
phases=()

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
warn() { printf '\033[1mwarning:\033[0m %s\n' "$*" >&2; }
die() {
  printf '\033[1merror:\033[0m %s\n' "$*" >&2
  exit 1
}

# phase NAME COMMAND…: runs it and keeps its time for the summary.
phase() {
  local name=$1 from to status=0
  shift
  say "$name"
  from=$(date +%s)
  "$@" || status=$?
  to=$(date +%s)
  phases+=("$(printf '%-28s %4dm %02ds' "$name" $(((to - from) / 60)) $(((to - from) % 60)))")
  if [ "$status" -ne 0 ]; then
    phases[-1]+="  FAILED ($status)"
    return "$status"
  fi
}

summary() {
  local seconds=$(($(date +%s) - started))
  [ ${#phases[@]} -eq 0 ] || printf '    %s\n' "${phases[@]}"
  printf '    %-28s %4dm %02ds\n' total $((seconds / 60)) $((seconds % 60))
}

# What each package is needed for, as `package|test that it is there|why`.
build_packages=(
  'clang|command -v clang|links the program, and reads C headers when RocksDB is built'
  'g++|command -v c++|compiles RocksDB, zstd and the cryptography of TLS'
  'libclang-dev|ls /usr/lib/llvm-*/lib/libclang.so* /usr/lib/*/libclang*.so*|reads C headers when RocksDB is built'
  'mold|command -v mold|links in seconds'
)
server_packages=(
  'python3-venv|python3 -m venv --help && python3 -c "import ensurepip"|a private Python with DuckDB, which reads the lake back'
  'debian-archive-keyring|test -s /usr/share/keyrings/debian-archive-keyring.gpg|checks the signatures of the servers that are unpacked'
  'openssl|command -v openssl|certificates for the servers'
  'util-linux|command -v flock && command -v setsid|stops servers that nobody uses any more'
  'xz-utils|command -v xz|unpacks the database servers'
  'ca-certificates|test -s /etc/ssl/certs/ca-certificates.crt|fetches packages over TLS'
)

# need_packages ENTRY…: installs those whose test fails.
need_packages() {
  local entry package probe why missing=() reasons=()
  for entry in "$@"; do
    IFS='|' read -r package probe why <<<"$entry"
    if ! bash -c "$probe" >/dev/null 2>&1; then
      missing+=("$package")
      reasons+=("$(printf '%-16s %s' "$package" "$why")")
    fi
  done
  if [ ${#missing[@]} -eq 0 ]; then
    say 'nothing to install: every package that this needs is there'
    return
  fi
  command -v apt-get >/dev/null ||
    die "this machine lacks ${missing[*]} (Debian's names) and has no apt-get: install them and run this again"
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get)
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null ||
      die "as root, run: apt-get install --no-install-recommends ${missing[*]}"
    apt=(sudo "${apt[@]}")
  fi
  say 'to be installed from your distribution (apt-get):'
  printf '      %s\n' "${reasons[@]}"
  "${apt[@]}" -qq update || warn 'apt-get update failed; trying with the lists that are there'
  "${apt[@]}" -y -qq -o Dpkg::Use-Pty=0 install --no-install-recommends "${missing[@]}"
}

need_rust() {
  if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
    export PATH="$HOME/.cargo/bin:$PATH"
  fi
  command -v cargo >/dev/null ||
    die 'Rust is missing: install it with rustup (https://rustup.rs); rust-toolchain.toml names the version that is used'
}
