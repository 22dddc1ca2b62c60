# The guest's end of kboot's command line: it reads requests from the serial line and answers.
#
# POSIX sh, for busybox ash, dash and bash. It is typed into a shell at login (comments and
# indentation are left out then), so it has to be short. N is the nonce of the session, digits.
#
# All it prints are frames, described in frames.py:   ~N:SEQUENCE:TAG:INDEX:LENGTH:PAYLOAD;
# A request is a line with the same text twice and its length in characters, so that lost bytes show
# even in a row of equal ones:   LENGTH|REQUEST|REQUEST
# where REQUEST is:   @N SEQUENCE VERB ARGUMENTS
set -f
stty -echo -isig 2>/dev/null
export LC_ALL=C
# An emulated 16550A takes input up to its trigger level, and then waits for the guest: 14 bytes
# instead of 8 make it 1.7 times as fast (QEMU 7.2).
x=
{
  X=$(tty)
  X=/sys/class/tty/${X##*/}/rx_trig_bytes
  read -r x <"$X" && echo 14 >"$X"
} 2>/dev/null
has() { command -v $1 >/dev/null 2>&1; }
for D in /run /tmp /dev/shm /var/tmp /; do
  D=${D%/}/.kboot-$N
  mkdir -m 700 $D 2>/dev/null && break
done
export KBOOT_DIR=$D
S=
has setsid && S=setsid
K=0
has md5sum && K=2
has cksum && K=1
B=0
has od && B=2
has base64 && B=1

# say TAG SEQUENCE PAYLOAD: the payload goes twice, for there is nothing else to check it by.
say() {
  set -- $1 $2 "$3,$3"
  printf '~%s:%s:%s:0:%s:%s;\n' $N $2 $1 ${#3} "$3"
}

# sum FILE: set C to CHECKSUM.SIZE of what is in it now.
sum() {
  C=0.0
  [ -s $1 ] || return 0
  if [ $K = 1 ]; then
    set -- $(cksum <$1)
    C=$1.$2
  else
    set -- $(wc -c <$1) $1
    set -- $1 $(head -c $1 $2 | md5sum)
    C=$((0x${2%????????????????????})).$1
  fi
}

# finished JOB: set A to its exit status and the sums of its output, or to 0 while it runs.
finished() {
  read -r A <$D/$1.r
  [ $A != no ] || { A=0; return 0; }
  sum $D/$1.o
  A=2.$A.$C
  sum $D/$1.e
  A=$A.$C
}

# short SEQUENCE TAG FILE: send a whole file with one process.
short() {
  i=0
  for l in $(base64 <$3); do
    i=$((i + 1))
    printf '~%s:%s:%s:%s:%s:%s;\n' $N $1 $2 $i ${#l} $l
  done
}

# long SEQUENCE TAG FILE OFFSET LENGTH: send a part of a file. Tags 1 and 2 are base64; 3 and 4 are
# hexadecimal in digits and signs, which no kernel message looks like.
long() {
  case $2 in
    1 | 2) w=76 n=$((($5 + 2) / 3 * 4)) ;;
    *) w=32 n=$(($5 * 2)) ;;
  esac
  tail -c +$(($4 + 1)) $3 | head -c $5 | case $2 in
    1 | 2) base64 ;;
    *) od -An -v -tx1 | tr -d ' ' | tr abcdef '!@%+=_' ;;
  esac | grep -n '' | sed \
    -e "\$!s/\(.*\):\(.*\)/~$N:$1:$2:\1:$w:\2;/" \
    -e "\$s/\(.*\):\(.*\)/~$N:$1:$2:\1:$(((n - 1) % w + 1)):\2;/"
}

# start JOB LOUD: run a command; if LOUD, send short output and the end unasked. The status has its
# place on the disk before the command begins, for that may fill the disk.
start() {
  echo "no " >$D/$1.r || return 1
  (
    $S sh $D/$1.c </dev/null >$D/$1.o 2>$D/$1.e &
    echo $! >$D/$1.p
    wait $!
    printf '%-3s' $? 1<>$D/$1.r
    [ $2 = 1 ] || exit
    finished $1
    I=$IFS IFS=.
    set -- $1 $A
    IFS=$I
    if [ $B = 1 ]; then
      [ $5 -gt 0 ] && [ $5 -le 4096 ] && short $1 1 $D/$1.o
      [ $7 -gt 0 ] && [ $7 -le 4096 ] && short $1 2 $D/$1.e
    fi
    say 9 $1 $A
  ) 2>/dev/null &
  eval "w$1=$!"
}

# free JOB: forget a finished command.
free() {
  eval "wait \${w$1:-0}; unset w$1"
  rm -f $D/$1.c $D/$1.o $D/$1.e $D/$1.p $D/$1.r
}

E=0
L=
while [ $E -lt 20 ]; do
  IFS='|' read -r l a b || { E=$((E + 1)); continue; }
  E=0
  [ -n "$l" ] || continue
  [ "$a" = "$b" ] && [ "$l" = ${#a} ] || { say 8 0 0; continue; }
  set -- $a
  [ "$1" = "@$N" ] || [ "$1" = @0 ] || continue
  Q=$2 V=$3
  shift 3
  if [ $Q = "$L" ] && [ $V != g ]; then
    say 0 $Q $A
    continue
  fi
  L=$Q A=1
  case $V in
    h) A=$K.$B ;;
    c)
      [ $2 != 0 ] || true >$D/$1.c
      printf %b "$3" >>$D/$1.c || A=9
      ;;
    w)
      # JOB INDEX LINES CHECKSUM.SIZE: a block, in the lines that follow; one that has come whole is
      # added, once.
      head -n $3 >$D/$1.b
      sum $D/$1.b
      [ $2 != 0 ] || { true >$D/$1.c; W=0; }
      if [ $C != $4 ]; then
        A=3
      elif [ $2 = $W ]; then
        cat $D/$1.b >>$D/$1.c && W=$((W + 1)) || A=9
      fi
      rm -f $D/$1.b
      ;;
    r)
      [ $3 = 0 ] || free $3
      [ "$4" = - ] || printf %b "$4" >$D/$1.c || A=9
      [ $A = 9 ] || start $1 $2 || A=9
      ;;
    s) finished $1 ;;
    g)
      long $Q $2 $D/$1.$3 $4 $5
      A=1
      ;;
    k)
      read -r p <$D/$1.p
      kill -$2 -$p || kill -$2 $p
      ;;
    f) free $1 ;;
    q)
      cd /
      rm -rf $D
      [ -z "$x" ] || echo $x >"$X"
      stty echo isig icanon
      say 0 $Q 1
      exit
      ;;
  esac 2>/dev/null
  say 0 $Q $A
done
