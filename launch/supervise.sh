# shellcheck shell=bash disable=SC2154
# What a job does on its first node, sourced by job.sh: check the nodes, start the ranks, and if they end without a
# result, ask `hpclm.recovery.restart_decision` (a job step inside the image, so a node needs no Python) whether to
# restart them here, to release the allocation and be requeued, or to stop. Slurm's commands are called only from here:
# an image does not contain them.
#
# job.sh sets: hpclm_stage hpclm_submit hpclm_limit_s hpclm_total_s hpclm_least_s hpclm_preflight_s hpclm_decision_s
# hpclm_bad_node_list,
# and the arrays hpclm_srun (srun and its options), hpclm_ranks (a rank's command), hpclm_python (an interpreter).

hpclm_began=$(date +%s)
hpclm_job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}
hpclm_job=${hpclm_job:-$SLURM_JOB_ID}
hpclm_spent_file=$hpclm_stage/attempts/$hpclm_submit.spent
hpclm_spent=$(cat "$hpclm_spent_file" 2>/dev/null || echo 0) # seconds of the stage's time used by earlier jobs
if [ "$hpclm_limit_s" -gt $((hpclm_total_s - hpclm_spent)) ]; then
  hpclm_limit_s=$((hpclm_total_s - hpclm_spent))
  scontrol update "JobId=$hpclm_job" "TimeLimit=$(((hpclm_limit_s + 59) / 60))" # so that the warning comes in time
fi
hpclm_ends=$((hpclm_began + hpclm_limit_s))
hpclm_signal=- hpclm_clock='' hpclm_attempt=none
# Slurm delays a requeued job by the lifetime of its credentials (120 s) unless its start time is already in the future.
hpclm_requeue_delay_s=8
hpclm_kill_wait_s=$(scontrol show config 2>/dev/null | sed -n 's/^KillWait *= *\([0-9]*\).*/\1/p')
hpclm_kill_wait_s=${hpclm_kill_wait_s:-30}

hpclm_event() { # WORD DETAIL: one line of the stage's attempt history; both are words of ours, numbers or names of nodes
  printf '{"at": %s, "job": "%s", "attempt": "%s", "event": "%s", "detail": "%s"}\n' \
    "$(date +%s)" "$hpclm_job" "${hpclm_attempt##*/}" "$1" "$2" >>"$hpclm_stage/events.jsonl"
}

hpclm_left_s() { # seconds left of the stage's total time
  echo $((hpclm_total_s - hpclm_spent - $(date +%s) + hpclm_began))
}

hpclm_pause() { # the job ends, the stage continues in the next one
  echo $((hpclm_spent + $(date +%s) - hpclm_began)) >"$hpclm_spent_file"
  [ -z "$hpclm_clock" ] || kill "$hpclm_clock" 2>/dev/null
  exit "${1:-0}"
}

hpclm_leave() { # CODE: the stage ends; what Slurm forgets after five minutes is saved in a file
  printf '%s %s %s\n' "$1" "$(date +%s)" "$hpclm_signal" >"$hpclm_stage/slurm/${hpclm_job}_exit"
  hpclm_pause "$1"
}

hpclm_pauses_s=(1 2 5 10 20 40 60 60 60 60 60 60 60 60) # together nine minutes: a controller that restarts is back by then

hpclm_nap() { # SECONDS, or until a signal arrives
  sleep "$1" &
  local pid=$!
  wait "$pid" || kill "$pid" 2>/dev/null
}

hpclm_slurm() { # COMMAND…: a command of Slurm, again and again while its controller does not respond
  local pause errors code
  for pause in "${hpclm_pauses_s[@]}" ''; do
    { errors=$("$@" 2>&1 1>&3 3>&-); } 3>&1
    code=$?
    case "$code $errors" in
      '0 '*) return 0 ;;
      *[Uu]'nable to contact slurm controller'* | *'Socket timed out'* | *'Connection refused'* | *'Zero Bytes'*) ;;
      *) break ;;
    esac
    [ -n "$pause" ] && hpclm_nap "$pause"
  done
  echo "$errors" >&2
  return "$code"
}

hpclm_start_at() { # SECONDS: fails if Slurm will not start the job again
  scontrol update "JobId=$hpclm_job" "StartTime=now+$1" >/dev/null 2>&1
}

hpclm_is_requeued() { # an answer may be lost although the request was taken
  local restarts
  restarts=$(hpclm_slurm scontrol --oneliner show job "$hpclm_job" | grep -o ' Restarts=[0-9]*' | cut -d= -f2)
  [ "${restarts:-0}" -gt "${SLURM_RESTART_COUNT:-0}" ]
}

hpclm_requeue() { # WHY EXCLUDED-NODES
  trap '' TERM USR1
  if [ "$(hpclm_left_s)" -lt "$hpclm_least_s" ]; then
    hpclm_event stop limit
    hpclm_leave 30
  fi
  if [ -n "$2" ]; then
    local there left
    there=$(hpclm_slurm sinfo --noheader --Node --partition="$SLURM_JOB_PARTITION" --format=%N | sort -u | wc -l)
    left=$((there - $(tr ',' '\n' <<<"$2" | wc -l)))
    if [ "$left" -lt "$SLURM_JOB_NUM_NODES" ]; then
      hpclm_event stop no-nodes
      hpclm_leave 44
    fi
  fi
  hpclm_event requeue "$1"
  if ! hpclm_slurm scontrol requeue "$hpclm_job" && ! hpclm_is_requeued; then
    hpclm_event stop requeue-refused
    hpclm_leave 45
  fi
  hpclm_start_at "$hpclm_requeue_delay_s"
  if [ -n "$2" ]; then
    local before
    before=$(hpclm_slurm scontrol --oneliner show job "$hpclm_job" | grep -o ' ExcNodeList=[^ ]*' | cut -d= -f2)
    [ "$before" = '(null)' ] && before=
    hpclm_slurm scontrol update "JobId=$hpclm_job" "ExcNodeList=${before:+$before,}$2"
  fi
  hpclm_pause
}

hpclm_on_term() { # Slurm ends the job: cancel, time limit, preemption, lost node or manual requeue
  hpclm_signal=TERM
  local try
  # Only a job that Slurm will start again accepts a start time, and for a preempted job that takes a moment.
  # The ranks may be saving until Slurm kills them.
  for try in 1 2 3 4 5; do
    if hpclm_start_at $((hpclm_kill_wait_s + hpclm_requeue_delay_s)); then
      hpclm_signal=REQUEUED
      hpclm_event requeue "$(hpclm_taken_because)"
      return
    fi
    [ "$try" = 5 ] || sleep 0.2
  done
}

hpclm_on_late() { # the time limit is near, and the ranks are still running despite the warning
  [ "$hpclm_signal" = - ] || return
  hpclm_event ranks-overran limit
  hpclm_requeue limit ''
}

hpclm_wait_for() { # COMMAND…: in the background, so that signals are handled at once
  "$@" &
  local pid=$!
  while :; do
    wait "$pid"
    hpclm_code=$?
    kill -0 "$pid" 2>/dev/null || break
  done
}

hpclm_taken_because() { # Slurm reports the reason only in the log: preemption, node-failure, job-requeue
  local why
  why=$(grep -o 'JOB [0-9]* ON .* DUE TO [A-Z ]*' "$hpclm_stage/slurm/${hpclm_job}_batch.log" 2>/dev/null)
  why=$(tail -n 1 <<<"$why" | sed 's/.* DUE TO //; s/ *$//' | tr 'A-Z ' 'a-z-')
  echo "${why:-slurm}"
}

hpclm_ended_by_slurm() { # after a TERM: the ranks have ended; requeue or end the job
  trap '' TERM USR1
  if [ "$hpclm_signal" = REQUEUED ]; then
    hpclm_start_at "$hpclm_requeue_delay_s"
    hpclm_pause
  fi
  local shown
  shown=$(hpclm_slurm scontrol --oneliner show job "$hpclm_job" 2>/dev/null)
  case "$shown" in
    *' Reason=TimeLimit '*) hpclm_requeue limit '' ;;
    *' PreemptTime='[0-9]*) hpclm_requeue preempted '' ;;
  esac
  hpclm_leave 143
}

hpclm_next_attempt() { # a new folder for every attempt, and its number for the ranks
  HPCLM_RESTART=0
  until mkdir "$hpclm_stage/attempts/$(printf '%s-%02d' "$hpclm_submit" "$HPCLM_RESTART")" 2>/dev/null; do
    HPCLM_RESTART=$((HPCLM_RESTART + 1))
    [ "$HPCLM_RESTART" -lt 10000 ] || hpclm_leave 46
  done
  export HPCLM_RESTART
  hpclm_attempt=$hpclm_stage/attempts/$(printf '%s-%02d' "$hpclm_submit" "$HPCLM_RESTART")
  mkdir "$hpclm_attempt/logs" "$hpclm_attempt/ranks" "$hpclm_attempt/preflight"
}

hpclm_step_starts() { # HOST: whether Slurm starts any step there; this one needs no image and no Python
  hpclm_wait_for timeout --kill-after=5 60 \
    srun --overlap --mpi=none --nodes=1 --ntasks=1 --nodelist="$1" true >/dev/null 2>&1
  [ "$hpclm_code" -eq 0 ]
}

hpclm_decided_on() { # HOST: ask for the decision there
  hpclm_wait_for timeout --kill-after=5 "$hpclm_decision_s" \
    "${hpclm_srun[@]}" --overlap --nodes=1 --ntasks=1 --nodelist="$1" \
    "${hpclm_python[@]}" -m hpclm.recovery.restart_decision "$hpclm_stage" "${hpclm_attempt##*/}" "$hpclm_ends" \
    "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd, -)"
  [ -s "$hpclm_attempt/decision" ] || [ "$hpclm_signal" != - ]
}

hpclm_writable() { # whether the run's file system takes anything
  printf '%08192d' 0 2>/dev/null >"$hpclm_attempt/.probe" && rm -f "$hpclm_attempt/.probe"
}

hpclm_claims() { # FILE: whether this job has the file, which one job gets; else that one is hpclm_owner
  # Made whole and then linked, so that it is never seen empty; where there are no hard links, the shell's own way.
  if echo "$hpclm_job" 2>/dev/null >"$1.$hpclm_job"; then
    ln "$1.$hpclm_job" "$1" 2>/dev/null || [ -e "$1" ] || (set -o noclobber && echo "$hpclm_job" >"$1") 2>/dev/null
  fi
  rm -f "$1.$hpclm_job"
  hpclm_owner=$(cat "$1" 2>/dev/null)
  [ "${hpclm_owner:-$hpclm_job}" = "$hpclm_job" ]
}

hpclm_lives() { # JOB: whether Slurm runs it or will; also if Slurm does not say
  local living
  living=$(hpclm_slurm squeue --noheader --array --user="$(id -u)" --format=%i) || return 0
  grep -qxF "$1" <<<"$living"
}

hpclm_ask_decision() { # sets hpclm_action and hpclm_detail
  local host pause
  hpclm_action=no-answer
  # Slurm starts no step while its controller restarts or a node is being lost; that says nothing about the image.
  for pause in 0 "${hpclm_pauses_s[@]}"; do
    hpclm_nap "$pause"
    for host in $(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 4); do
      [ "$hpclm_signal" = - ] || return
      hpclm_decided_on "$host" && break
      hpclm_step_starts "$host" || continue
      hpclm_decided_on "$host" && break
      hpclm_action=no-interpreter
    done
    read -r hpclm_action hpclm_detail 2>/dev/null <"$hpclm_attempt/decision" && return
    [ "$hpclm_action" = no-answer ] || return
  done
}

trap hpclm_on_term TERM
trap hpclm_on_late USR1
mkdir -p "$hpclm_stage/attempts"
if [ "$hpclm_limit_s" -gt 40 ]; then
  {
    sleep $((hpclm_limit_s - 20)) &
    trap 'kill $!' TERM
    wait $! && kill -USR1 $$
  } &
  hpclm_clock=$!
fi
rm -f "$hpclm_stage/slurm/${hpclm_job}_exit"
if [ -s "$hpclm_stage/result.json" ]; then
  hpclm_leave 0 # another job has already completed this stage
fi
hpclm_claim=$hpclm_stage/attempts/$hpclm_submit.job
until hpclm_claims "$hpclm_claim"; do
  if hpclm_lives "$hpclm_owner"; then
    echo "hpclm: job $hpclm_owner runs this stage; job $hpclm_job ends"
    hpclm_leave 48
  fi
  # A file of its own, as the one before: two jobs that find the same dead one cannot both have it.
  hpclm_claim=$hpclm_stage/attempts/$hpclm_submit.job.after.$hpclm_owner
done

while :; do
  hpclm_next_attempt
  hpclm_event start "$SLURM_JOB_NODELIST"
  hpclm_code=0
  if [ "$hpclm_preflight_s" -gt 0 ]; then
    hpclm_wait_for timeout --kill-after=5 "$hpclm_preflight_s" \
      "${hpclm_srun[@]}" --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" \
      "${hpclm_python[@]}" -m hpclm.nodes.preflight "$hpclm_stage" "$hpclm_attempt"
  fi
  if [ "$hpclm_code" -eq 0 ] && [ "$hpclm_signal" = - ]; then
    hpclm_wait_for "${hpclm_srun[@]}" --kill-on-bad-exit=1 --output="$hpclm_attempt/logs/%5t.log" "${hpclm_ranks[@]}"
  fi
  if [ -s "$hpclm_stage/result.json" ]; then
    hpclm_event end complete
    hpclm_leave 0
  fi
  [ "$hpclm_signal" = - ] || hpclm_ended_by_slurm
  hpclm_event end "$hpclm_code"
  hpclm_ask_decision
  [ "$hpclm_signal" = - ] || hpclm_ended_by_slurm
  if [ -s "$hpclm_attempt/bad-nodes" ]; then
    cat "$hpclm_attempt/bad-nodes" >>"$hpclm_bad_node_list" 2>/dev/null
  fi
  case "$hpclm_action" in
    again) hpclm_event again here ;;
    requeue) hpclm_requeue decision "$hpclm_detail" ;;
    stop)
      hpclm_event stop decision
      hpclm_leave "$hpclm_detail"
      ;;
    no-answer)
      if [ "$(grep -c '"requeue", "detail": "no-answer"' "$hpclm_stage/events.jsonl")" -lt 3 ]; then
        hpclm_requeue no-answer ''
      fi
      hpclm_event stop no-answer
      hpclm_leave 47
      ;;
    no-interpreter)
      # steps start, and the interpreter in them does not; or what it decided could not be written
      if ! hpclm_writable; then
        echo "hpclm: $hpclm_stage cannot be written to: its file system is full or read-only"
        hpclm_leave 49
      fi
      hpclm_event stop no-interpreter
      hpclm_leave 43
      ;;
  esac
done
