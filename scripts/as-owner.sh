#!/bin/sh
# as-owner DIR COMMAND...: in a container that starts as root, runs COMMAND as the user that owns
# DIR, a folder mounted from the host, so that results belong to whoever made the folder. A folder
# that root owns (an engine makes missing ones so) is given to the image's own user first.
set -eu

dir=$1
shift
[ "$(id -u)" = 0 ] || exec "$@"

owner=$(stat -c '%u %g' "$dir")
if [ "$owner" = '0 0' ]; then
  # In a rootless engine root is the user who runs the engine, and owns the folder already.
  read -r inside outside _ < /proc/self/uid_map
  [ "$inside $outside" = '0 0' ] || exec "$@"
  owner="$(id -u predump) $(id -g predump)"
  chown "${owner% *}:${owner#* }" "$dir"
fi
export HOME=/tmp
exec setpriv --reuid "${owner% *}" --regid "${owner#* }" --clear-groups --no-new-privs "$@"
