# Sourced by the scripts beside it, from the clone's top: makes ./.venv and installs the project into it.
# shellcheck shell=sh

say() { printf '%s\n' "$*" >&2; }

# Run a command as root, or fail where that would need a password.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo -n "$@"
    else
        return 1
    fi
}

# Install Debian packages; fails where there is no apt-get or no right to use it.
apt_install() {
    command -v apt-get >/dev/null 2>&1 && as_root true 2>/dev/null || return 1
    say "installing Debian packages: $*"
    as_root apt-get update -q </dev/null >&2 || say "apt-get update failed; trying with the lists at hand"
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends "$@" </dev/null >&2
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Print the interpreter to use: $PYTHON, or the first on the path that is new enough.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" && echo "$PYTHON" && return
        say "PYTHON=$PYTHON is not a working Python 3.11 or newer"
        return 1
    fi
    for candidate in python3.11 python3.12 python3.13 python3.14 python3; do
        new_enough "$candidate" && echo "$candidate" && return
    done
    say "no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python3 sh $0"
    return 1
}

# make_venv PYTHON: Debian has ensurepip, without which a venv has no pip, in a package of its own.
make_venv() {
    package=python$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv
    rm -rf .venv
    "$1" -c 'import ensurepip' 2>/dev/null || apt_install "$package" || true
    "$1" -m venv .venv >&2 && return
    rm -rf .venv
    "$1" -m virtualenv -q .venv 2>/dev/null && return
    say "cannot make a virtual environment: install $package or virtualenv, then try again"
    return 1
}

# What the environment depends on: the interpreter, where the clone is, and what is to be installed.
fingerprint() {
    "$1" -c 'import sys; print(sys.version, sys.base_prefix)'
    pwd
    cksum pyproject.toml constraints.txt
}

# set_up TARGET: an environment with "." or ".[test]" in it; at once if that is done already.
set_up() {
    python=$(find_python) || return 1
    wanted=$(fingerprint "$python")
    for stamp in ".venv/installed-$1" ".venv/installed-.[test]"; do
        [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return
    done
    say "setting up .venv with $python for $1"
    make_venv "$python" || return 1
    .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e "$1" \
        </dev/null >&2 || return 1
    printf '%s\n' "$wanted" >".venv/installed-$1"
}
