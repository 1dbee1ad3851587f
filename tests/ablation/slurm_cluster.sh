#!/usr/bin/env bash
# A Slurm cluster on this machine alone, for tests: two nodes with two CPUs and two "GPUs" each, that do not exist.
# Jobs of the partition "urgent" take the nodes from those of "main", the default.
#
#   slurm_cluster.sh start FOLDER    into a new folder; then export SLURM_CONF=FOLDER/slurm.conf
#   slurm_cluster.sh stop FOLDER     ends it, with all that it runs
#
# As root, on Debian after: apt-get install slurm-wlm munge. Nothing outside of FOLDER is written or listened to
# but ports of 127.0.0.1; no service of the machine is touched.
set -euo pipefail
action=$1
folder=$2

free_ports() {
  python3 - "$1" <<'PYTHON'
import socket, sys
found = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in found:
    one.bind(('127.0.0.1', 0))
print(*(one.getsockname()[1] for one in found))
PYTHON
}

start() {
  mkdir -p "$folder"/{state,spool/node1,spool/node2,log}
  folder=$(realpath "$folder")
  local controller first second
  read -r controller first second < <(free_ports 3)
  cat >"$folder/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$controller
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
KillWait=3
MinJobAge=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node1 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$first CPUs=2 Gres=gpu:2
NodeName=node2 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$second CPUs=2 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=3
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
CONF
  # A GPU has to be a device; nothing opens these.
  printf 'NodeName=node[1-2] Name=gpu File=/dev/%s\n' null zero >"$folder/gres.conf"
  export SLURM_CONF=$folder/slurm.conf
  dd if=/dev/urandom of="$folder/munge.key" bs=128 count=1 status=none
  chmod 600 "$folder/munge.key"
  # --force: FOLDER need not be open to other users.
  munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
    --pid-file="$folder/munged.pid" --log-file="$folder/log/munged.log" --seed-file="$folder/munge.seed"
  slurmctld -c
  slurmd -N node1
  slurmd -N node2
  for _ in $(seq 100); do
    if [ "$(sinfo --noheader --format=%T --states=idle 2>/dev/null)" = idle ] \
      && [ "$(sinfo --noheader --format=%D --states=idle)" = 2 ]; then return; fi
    sleep 0.2
  done
  sinfo >&2 || true
  tail -n 20 "$folder"/log/*.log >&2
  echo "slurm_cluster.sh: the nodes did not come up; the logs above, and in $folder/log, say why" >&2
  return 1
}

stop() {
  export SLURM_CONF=$folder/slurm.conf
  scancel --user="$(id -un)" --signal=KILL --full 2>/dev/null || true
  local file
  for file in "$folder"/slurmd.*.pid "$folder/slurmctld.pid" "$folder/munged.pid"; do
    if [ -f "$file" ]; then kill "$(cat "$file")" 2>/dev/null || true; fi
  done
}

"$action"
