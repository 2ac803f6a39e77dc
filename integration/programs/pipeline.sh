# A pipeline that counts: digits go through several programs and come out as they were. It says so in $1.
n=0
while :; do echo $((n += 1)); done |
	tr 0-9 a-j | cat | sed 's/^/ /' | tr a-j 0-9 | tee >(grep -c . >/dev/null) |
	awk -v status="$1" '
		$1 != NR { print "BAD line " NR " is " $0 > status; exit 1 }
		NR % 500 == 0 { print "OK " NR / 500 > status; close(status) }'
