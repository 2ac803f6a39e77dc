# Builds a program of several files with several jobs at a time, again and again, and runs it. It says so in $1.
status=$1
cd "$(mktemp -d)" || exit 1
{
	printf 'app: main.o'
	for i in 1 2 3 4 5 6; do printf ' part%s.o' $i; done
	printf '\n\tgcc -o $@ $^\n%%.o: %%.c\n\tgcc -O1 -c $<\n'
} >Makefile
for i in 1 2 3 4 5 6; do
	echo "#include <stdio.h>
	int part$i(int n) { return n < 2 ? $i : part$i(n - 1) + part$i(n - 2); }" >part$i.c
done
echo '#include <stdio.h>
#define PART(i) int part##i(int n);
PART(1) PART(2) PART(3) PART(4) PART(5) PART(6)
int main(void) { printf("%d\n", part1(9) + part2(9) + part3(9) + part4(9) + part5(9) + part6(9)); return 0; }' >main.c
n=0
while :; do
	rm -f app ./*.o
	if ! make -s -j3 >log 2>&1; then
		echo "BAD $(tail -n 1 log)" >"$status"
		exit 1
	fi
	got=$(./app)
	if [ "$got" != 1155 ]; then
		echo "BAD it says $got" >"$status"
		exit 1
	fi
	echo "OK $((n += 1))" >"$status"
done
