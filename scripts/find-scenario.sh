# For scripts to source: `scenario` is a file, or the name of one in scenarios/ (quickstart); `file` is
# that file. Where there is none, `die` (the script's own) says which there are.
# shellcheck shell=bash
scenario=${1:-quickstart}
for file in "$scenario" "scenarios/$scenario.toml"; do [[ ! -f $file ]] || break; done
[[ -f $file ]] || die "there is no scenario $scenario; scenarios/ has: $(cd scenarios && echo *.toml)"
