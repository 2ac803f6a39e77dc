// Goroutines, channels, timers and a garbage collector at work. It says so in os.Args[1].
package main

import (
	"fmt"
	"hash/fnv"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

type node struct {
	left, right *node
	value       int
}

func tree(depth, value int) *node {
	if depth == 0 {
		return &node{value: value}
	}
	return &node{tree(depth-1, 2*value), tree(depth-1, 2*value+1), value}
}

func (n *node) sum() int {
	if n == nil {
		return 0
	}
	return n.value + n.left.sum() + n.right.sum()
}

func say(format string, args ...interface{}) {
	if err := os.WriteFile(os.Args[1], []byte(fmt.Sprintf(format+"\n", args...)), 0o644); err != nil {
		panic(err)
	}
}

func bad(format string, args ...interface{}) {
	say("BAD "+format, args...)
	os.Exit(1)
}

func main() {
	runtime.GOMAXPROCS(4)
	var rounds [4]int64
	kept := tree(14, 1)
	want := kept.sum()
	for i := range rounds {
		go func(i int) {
			for {
				if tree(10, i).sum() != tree(10, i).sum() || kept.sum() != want {
					bad("a tree has changed")
				}
				atomic.AddInt64(&rounds[i], 1)
			}
		}(i)
	}
	numbers, hashes := make(chan int), make(chan uint64, 10)
	go func() {
		for n := 0; ; n++ {
			numbers <- n
		}
	}()
	for i := 0; i < 8; i++ {
		go func() {
			for n := range numbers {
				hash := fnv.New64a()
				fmt.Fprint(hash, n)
				hashes <- hash.Sum64()
			}
		}()
	}
	go func() {
		for range hashes {
		}
	}()
	var last [4]int64
	began := time.Now()
	ticker := time.NewTicker(5 * time.Millisecond)
	for n := 1; ; n++ {
		<-ticker.C
		var group sync.WaitGroup
		for i := range rounds {
			group.Add(1)
			go func(i int) {
				defer group.Done()
				for atomic.LoadInt64(&rounds[i]) == last[i] {
					time.Sleep(time.Millisecond)
				}
				last[i] = atomic.LoadInt64(&rounds[i])
			}(i)
		}
		group.Wait()
		if time.Since(began) < 0 || time.Since(began) > time.Hour {
			bad("%v since the beginning", time.Since(began))
		}
		say("OK %d", n)
	}
}
