#!/usr/bin/env bash
# A TPU pod from nothing to a finished run, by gcloud; docs/pods.md goes through it.
#
#   export NAME=align ZONE=us-west4-a TYPE=v5litepod-16
#   launch/pod.sh create --spot     ask for it, and wait until it is there
#   launch/pod.sh install           this commit and its libraries, on every host
#   launch/pod.sh run python launch/train.py --config=configs/pretrain.py --workdir=gs://...
#   launch/pod.sh keep --spot -- python launch/train.py ...
#                                   all three, and again after a preemption, until it is done
#   launch/pod.sh logs | status | stop | delete
#
# SLICES=2 asks for two slices of that type (multislice); RUNTIME names the software of the VMs.
set -euo pipefail

SELF=${BASH_SOURCE[0]}
ROOT=$(cd "$(dirname "$SELF")/.." && pwd)
NAME=${NAME:?the name of the pod, for instance: export NAME=align}
ZONE=${ZONE:?the zone, for instance: export ZONE=us-west4-a}
SLICES=${SLICES:-1}
POLL_SECONDS=${POLL_SECONDS:-60}
GROUP=(gcloud compute tpus queued-resources)

say() { echo "pod: $*" >&2; }

fail() {
  echo "error: $*" >&2
  exit 2
}

on_hosts() {
  "${GROUP[@]}" ssh "$NAME" --zone="$ZONE" --node=all --worker=all --command="$1"
}

# The host whose process prints.
on_first() {
  "${GROUP[@]}" ssh "$NAME" --zone="$ZONE" --node=0 --worker=0 --command="$1"
}

# Print the state, ABSENT where there is no such pod, UNKNOWN where nobody answers.
state() {
  local said
  said=$(mktemp)
  if "${GROUP[@]}" describe "$NAME" --zone="$ZONE" --format='value(state.state)' 2> "$said"; then
    :
  elif grep -q NOT_FOUND "$said"; then
    echo ABSENT
  else
    cat "$said" >&2
    echo UNKNOWN
  fi
  rm "$said"
}

runtime() {
  case ${TYPE:?the accelerator, for instance: export TYPE=v5litepod-16} in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create() {
  local software nodes=(--node-id="$NAME")
  software=${RUNTIME:-$(runtime)}
  if [ "$SLICES" -gt 1 ]; then nodes=(--node-count="$SLICES" --node-prefix="$NAME"); fi
  "${GROUP[@]}" create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
    --runtime-version="$software" "${nodes[@]}" \
    --scopes=https://www.googleapis.com/auth/cloud-platform "$@"
  local now
  while now=$(state) && [ "$now" != ACTIVE ]; do
    case $now in FAILED | SUSPEND* | ABSENT) fail "$NAME is $now; see: launch/pod.sh status" ;; esac
    say "$NAME is $now, looking again in $POLL_SECONDS s"
    sleep "$POLL_SECONDS"
  done
  say "$NAME is there"
}

check_commit() {
  if [ -n "$(git -C "$ROOT" status --porcelain --untracked-files=no)" ]; then
    fail "files of $ROOT differ from its commit, which is what is installed; commit them"
  fi
}

# A bundle keeps the commit, which the run's manifest.json names. uv brings a Python that is new
# enough, and need not wait for the package manager of a VM that has just started.
install() {
  local bundle=vtalign_jax.bundle
  check_commit
  git -C "$ROOT" bundle create --quiet "$ROOT/$bundle" HEAD
  "${GROUP[@]}" scp "$ROOT/$bundle" "$NAME:" --zone="$ZONE" --node=all --worker=all
  rm "$ROOT/$bundle"
  on_hosts "set -e
    rm -rf vtalign_jax
    git clone --quiet $bundle vtalign_jax
    cd vtalign_jax
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --python 3.12 .venv
    python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu,gcs]'"
}

# launch/run.sh goes on without the connection and leaves log and exit code on its host.
run() {
  [ $# -gt 0 ] || fail "run what? launch/pod.sh run python launch/train.py --config=..."
  on_hosts "set -e
    cd vtalign_jax
    if kill -0 \$(cat run.pid 2> /dev/null) 2> /dev/null; then
      echo 'error: a run is under way; launch/pod.sh stop ends it' >&2
      exit 2
    fi
    rm -f run.code
    export PATH=\$PWD/.venv/bin:\$PATH
    nohup setsid launch/run.sh $(printf '%q ' "$@") > /dev/null 2>&1 < /dev/null &"
}

is_under_way() {
  on_first "kill -0 \$(cat vtalign_jax/run.pid 2> /dev/null) 2> /dev/null && echo yes || true"
}

logs() { on_first "tail -n +1 -F vtalign_jax/run.log"; }

# SIGTERM to one process saves and ends all.
stop() { on_first "kill -TERM \$(cat vtalign_jax/run.pid)"; }

status() { "${GROUP[@]}" describe "$NAME" --zone="$ZONE"; }

delete() { "${GROUP[@]}" delete "$NAME" --zone="$ZONE" --force --quiet; }

# Print how the run ended: done, unfinished, mistaken, failed; nothing while it goes on.
outcome() {
  on_first "cd vtalign_jax
    case \$(cat run.code 2> /dev/null) in
      '') ;;
      0) echo done ;;
      75) echo unfinished ;;
      2) grep -h '^error: ' run.log >&2; echo mistaken ;;
      *) echo failed ;;
    esac"
}

# Start the command, and again when the pod was preempted or a host was lost, until it is done.
keep() {
  local options=() is_installed="" is_running="" now ended
  while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1") && shift; done
  [ $# -gt 1 ] || fail "keep what? launch/pod.sh keep --spot -- python launch/train.py --config=..."
  shift
  check_commit
  now=$(state)
  if [ "$now" = ACTIVE ]; then is_running=$(is_under_way) || is_running=""; fi
  while true; do
    case $now in
      ACTIVE)
        if [ -z "$is_running$is_installed" ] && "$SELF" install; then is_installed=yes; fi
        if [ -n "$is_installed" ] && [ -z "$is_running" ] && "$SELF" run "$@"; then
          is_running=yes
        fi
        ended=$(outcome) || ended="" # no answer: the pod may be going away
        case $ended in
          done) say "the run is done; launch/pod.sh delete ends the bill" && return ;;
          mistaken) fail "the run ended with the mistake above; the pod is still there" ;;
          ?*) say "the run is $ended; starting it again" && is_running="" ;;
        esac
        ;;
      ABSENT)
        is_installed="" is_running=""
        "$SELF" create ${options[@]+"${options[@]}"}
        ;;
      FAILED | SUSPEND*)
        say "$NAME is $now; asking for another"
        is_installed="" is_running=""
        delete || say "it cannot be deleted yet"
        ;;
      *) say "$NAME is $now" ;;
    esac
    if [ "$now" != ABSENT ]; then sleep "$POLL_SECONDS"; fi
    now=$(state)
  done
}

case ${1:-} in
  create | install | run | keep | logs | status | stop | delete) "$@" ;;
  *) fail "launch/pod.sh create|install|run|keep|logs|status|stop|delete; see docs/pods.md" ;;
esac
