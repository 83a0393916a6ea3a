# Sourced by the scripts beside it: make_venv REQUIREMENT makes .venv and installs the checkout, editable, into it.
# What is there already is kept, unless pyproject.toml has changed since.
make_venv() {
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "disttrain needs Python 3.11 or newer, $python is $("$python" --version 2>&1); set PYTHON" >&2
        exit 1
    fi
    stamp=".venv/.installed-$(printf %s "$1" | tr -c 'a-z0-9\n' -)"
    if [ -x .venv/bin/python ] && [ "$stamp" -nt pyproject.toml ]; then
        return
    fi
    echo "installing into .venv …"
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e "$1"
    touch "$stamp"
}
