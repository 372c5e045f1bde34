// The stream to the engine: opened, kept alive, left, opened again; and the way out at SIGTERM.
package main

import (
	"context"
	"log"
	"math/rand"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	pb "tidegate.example/v1"
)

// connect works on one stream until it breaks, or is left.
func connect(address string) error {
	conn, err := grpc.Dial(address, grpc.WithInsecure())
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if token := os.Getenv("TIDEGATE_TOKEN"); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	patience := time.AfterFunc(10*time.Second, cancel)
	stream, err := pb.NewWorkerServiceClient(conn).Work(ctx)
	if err != nil {
		return err
	}
	mu.Lock()
	hello := &pb.Hello{Name: "go-example", Client: "go-example/1", Capacity: uint32(capacity)}
	for name, k := range kinds {
		hello.Kinds = append(hello.Kinds, &pb.WorkerKind{
			Kind: name, Description: k.description, InputSchemaJson: k.schema, ExampleJson: k.example})
	}
	for _, j := range jobs {
		hello.Leases = append(hello.Leases, &pb.HeldLease{JobId: j.JobId, LeaseToken: j.LeaseToken})
	}
	mu.Unlock()
	if err := stream.Send(&pb.WorkRequest{Message: &pb.WorkRequest_Hello{Hello: hello}}); err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	patience.Stop()
	ping := first.GetWelcome().GetPingInterval().AsDuration()
	if ping <= 0 {
		ping = 10 * time.Second
	}
	mine := make(chan *pb.WorkRequest, 300*capacity)
	mu.Lock()
	out, hangUp, heard, leaveAt, limits = mine, cancel, time.Now(), time.Time{}, first.GetWelcome()
	if leaving {
		leave()
	}
	welcomed(first.GetWelcome())
	mu.Unlock()
	defer func() { mu.Lock(); out = nil; mu.Unlock() }()
	go func() {
		for pinged := time.Now(); ctx.Err() == nil; {
			select {
			case m := <-mine:
				if stream.Send(m) != nil {
					return
				}
			case <-time.After(20 * time.Millisecond):
			}
			if time.Since(pinged) > ping {
				pinged = time.Now()
				stream.Send(&pb.WorkRequest{Message: &pb.WorkRequest_Ping{Ping: &pb.Ping{}}})
			}
			mu.Lock()
			drained := !leaveAt.IsZero() && (len(jobs) == 0 || time.Now().After(leaveAt))
			if drained || time.Since(heard) > 2*ping {
				cancel()
			}
			mu.Unlock()
		}
	}()
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		said(m)
	}
}

// shutdown lets the jobs finish within the grace time, then gives them back.
func shutdown(grace time.Duration) {
	mu.Lock()
	leaving = true
	leave()
	wait(grace, func() bool { return running == 0 })
	for _, j := range jobs {
		j.stop()
	}
	wait(5*time.Second, func() bool { return running == 0 })
	for _, j := range jobs {
		j.end(released())
	}
	wait(5*time.Second, func() bool { return len(jobs) == 0 })
	os.Exit(0)
}

// leave asks for no more jobs, before any job is given back: that goes to other workers then.
func leave() {
	say(&pb.WorkRequest{Message: &pb.WorkRequest_Leave{Leave: &pb.Leave{}}})
}

// wait gives the mutex away until the condition holds, for so long at most.
func wait(most time.Duration, condition func() bool) {
	for until := time.Now().Add(most); !condition() && time.Now().Before(until); {
		mu.Unlock()
		time.Sleep(10 * time.Millisecond)
		mu.Lock()
	}
}

func setting(name string, otherwise int) int {
	if value, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return value
	}
	return otherwise
}

func main() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	go func() {
		<-signals
		shutdown(time.Duration(setting("TIDEGATE_GRACE_SECONDS", 5)) * time.Second)
	}()
	engines := strings.Split(os.Getenv("TIDEGATE_ENGINE"), ",")
	rand.Seed(time.Now().UnixNano())
	for n, pause := 0, 200*time.Millisecond; ; n++ {
		begun, engine := time.Now(), strings.TrimPrefix(engines[n%len(engines)], "http://")
		log.Printf("no gRPC stream to the engine %s: %v", engine, connect(engine))
		if time.Since(begun) > 10*time.Second { // a welcome alone is no health
			pause = 200 * time.Millisecond
		}
		time.Sleep(pause/2 + time.Duration(rand.Int63n(int64(pause/2))))
		if pause *= 2; pause > 15*time.Second {
			pause = 15 * time.Second
		}
	}
}
