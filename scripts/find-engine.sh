# For scripts to source: `compose` is the command that works, preferring version 2 (COMPOSE chooses
# another). Where there is none, or no engine answers, `die` (the script's own) says what to do.
# shellcheck shell=bash
compose=${COMPOSE-}
if [[ -z $compose ]]; then
  if docker compose version >/dev/null 2>&1; then compose='docker compose'
  elif docker-compose version >/dev/null 2>&1; then compose=docker-compose
  else die 'neither docker compose nor docker-compose is there; docs/compose.md says how to get one'; fi
fi
docker info >/dev/null 2>&1 || die 'the Docker engine does not answer: is it started, and may you use it?'
