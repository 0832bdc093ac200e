#!/bin/sh
# Make the virtual environment of `make install` with a Python that this project runs on:
#
#     requirements/venv.sh FOLDER [PYTHON]
#
# Without PYTHON: the first of python3.11, python3.12, python3.13 and python3 that fits. A folder
# that has a fitting environment is left as it is.
set -u
folder=$1
asked=${2:-}
fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
version='import sys; print("%d.%d" % sys.version_info[:2])'

if [ -x "$folder/bin/python" ] && "$folder/bin/python" -c "$fits" 2>/dev/null; then
  [ -z "$asked" ] && exit 0
  [ "$("$asked" -c "$version" 2>/dev/null)" = "$("$folder/bin/python" -c "$version")" ] && exit 0
fi

found=
for python in ${asked:-python3.11 python3.12 python3.13 python3}; do
  has=$("$python" -c "$version" 2>/dev/null) || continue  # not there, or a shim of none
  if ! "$python" -c "$fits"; then
    found="$found, $python is Python $has"
  elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    found="$found, $python lacks venv or ensurepip (on Debian and Ubuntu: apt-get install python$has-venv)"
  else
    exec "$python" -m venv --clear "$folder"
  fi
done
found=${found#, }
echo "error: this project needs Python 3.11, 3.12 or 3.13 with venv, and there is none:" \
  "${found:-no ${asked:-python3.11, python3.12, python3.13 or python3} on the path that runs}." \
  "Install one of them, or name one: make install PYTHON=/path/to/python3.12" >&2
exit 1
