#!/usr/bin/env bash
# Run a command on a host of a pod, so that whoever started it knows whether to start it again.
#
#   launch/run.sh python launch/train.py --config=configs/pretrain.py --workdir=gs://...
#
# Ends with the command's code, or with 75 where a training was told to end (a preemption) before it
# was done. Leaves run.log, run.pid and, at the end, run.code in the folder it is started in.
set -uo pipefail

UNFINISHED="the same command goes on from there" # what process 0 of such a training says

rm -f run.code
: > run.log
tail -n +1 -f run.log & # a file, since a pipe's other end may be told to end before the command
follower=$!
"$@" > run.log 2>&1 &
process=$!
echo $process > run.pid
trap 'kill -TERM $process' TERM # the machine is going away: let the command save
while true; do
  wait $process
  ended=$?
  kill -0 $process 2> /dev/null || break # otherwise it was a signal that ended `wait`
done
if [ "$ended" = 0 ] && grep -q "$UNFINISHED" run.log; then ended=75; fi
sleep 0.5 # for the follower
kill $follower
echo "$ended" > run.code
exit "$ended"
