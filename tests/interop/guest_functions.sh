# What tests ask of the guest.

# memory PID FILE: the mappings of a stopped process and all that can be read of its memory.
memory() {
  cp "/proc/$1/maps" "$2.maps"
  : > "$2"
  while read -r range perms _ _ _ name; do
    case $perms$name in r*'[vvar]' | r*'[vsyscall]' | -*) continue ;; esac
    start=$((0x${range%-*} / 4096)) end=$((0x${range#*-} / 4096))
    dd if="/proc/$1/mem" bs=4096 skip=$start count=$((end - start)) 2> /dev/null >> "$2" || return
  done < "$2.maps"
}

# passes STATUS STEP: waits until a memtouch has taken the step and then checked all of its memory
# twice; fails if it takes 60 s, or when the program finds an error.
passes() {
  first=
  for _ in $(seq 600); do
    case $(cat "$1" 2> /dev/null) in
      *FAIL*) return 1 ;;
      step=*"$2 passes="*PASS*)
        now=$(sed 's/.*passes=0*\([0-9]*\) .*/\1/' "$1")
        [ -n "$first" ] || first=$now
        [ "$now" -lt $((first + 2)) ] || return 0
        ;;
    esac
    usleep 100000
  done
  return 1
}

# stepped STATUS STEP: waits until a program's status file says that it has taken the step, for 60 s.
stepped() {
  for _ in $(seq 600); do
    [ "$(cat "$1" 2> /dev/null)" = "step=$2" ] && return
    usleep 100000
  done
  return 1
}
