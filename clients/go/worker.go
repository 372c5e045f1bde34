// A Tidegate worker in Go without a library: all it knows is proto/tidegate/v1/worker_service.proto, and what
// tests/conformance/README.md says that a worker owes the engine.
//
// This file has the leases and the engine's orders, report.go what is said about them, stream.go the stream,
// primes.go a kind. One mutex guards all state. A report is kept until it is answered, and sent again on the next
// stream, so that a broken stream harms no job.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	pb "tidegate.example/v1"
)

type kind struct {
	description, schema, example string
	run                          func(*job) (any, error)
}

// job is one lease: what its handler sees, and the reports that the engine has not answered.
type job struct {
	*pb.Assignment
	ctx        context.Context // done when the job is lost or is to stop
	stop       context.CancelFunc
	window     chan struct{} // room for unanswered reports
	number     uint64        // of the last report
	unanswered []unanswered
	cancelled  bool // by somebody, not because this worker leaves
	closed     bool // lost, or its end is reported: nothing more is said
}

type unanswered struct {
	report *pb.Report
	answer chan error
}

var (
	errGone  = errors.New("the job is lost, or is to stop")
	stopped  = func() *pb.Report { return &pb.Report{Body: &pb.Report_Stopped{Stopped: &pb.Stopped{}}} }
	released = func() *pb.Report { return &pb.Report{Body: &pb.Report_Released{Released: &pb.Released{}}} }
	failed   = func(f failure) *pb.Report {
		return &pb.Report{Body: &pb.Report_Fail{Fail: &pb.Failed{Code: f.code, Message: f.message, Retryable: f.retryable}}}
	}
)

// The worker's state.
var (
	mu       sync.Mutex
	jobs     = map[string]*job{}
	out      chan *pb.WorkRequest // the stream's; nil while there is none
	hangUp   context.CancelFunc
	heard    time.Time // when the engine last said something
	leaveAt  time.Time // set by Drain
	leaving  bool      // since SIGTERM
	running  int       // handlers
	limits   *pb.Welcome
	capacity = setting("TIDEGATE_CAPACITY", 4)
)

func assigned(a *pb.Assignment) {
	if held := jobs[a.JobId]; held != nil {
		if held.LeaseToken == a.LeaseToken {
			return
		}
		held.lose()
	}
	j := &job{Assignment: a, window: make(chan struct{}, 256)}
	j.ctx, j.stop = context.WithCancel(context.Background())
	full, kind := len(jobs) >= capacity, kinds[a.Kind]
	jobs[a.JobId] = j
	switch {
	case full:
		j.end(released())
	case leaving: // given back at the end; at once, the engine might assign it here again
	case kind.run == nil:
		j.end(failed(failure{"unknown_kind", "this worker does not run " + a.Kind, false}))
	default:
		running++
		go func() {
			result, err := j.run(kind)
			mu.Lock()
			defer mu.Unlock()
			running--
			j.end(j.outcome(result, err))
		}()
	}
}

func (j *job) run(k kind) (result any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = failure{"panic", fmt.Sprint(p), false}
		}
	}()
	return k.run(j)
}

func (j *job) outcome(result any, err error) *pb.Report {
	text, bad := json.Marshal(result)
	if bad == nil {
		bad = fits(len(text), limits.GetMaxResultBytes(), 262144)
	}
	var known failure
	switch {
	case j.cancelled:
		return stopped()
	case err != nil && j.ctx.Err() != nil: // it was told to make room
		return released()
	case errors.As(err, &known):
		return failed(known)
	case err != nil:
		return failed(failure{"error", err.Error(), true})
	case bad != nil:
		return failed(failure{"result_too_large", bad.Error(), false})
	}
	return &pb.Report{Body: &pb.Report_Complete{Complete: &pb.Completed{ResultJson: string(text)}}}
}

func (j *job) lose() {
	j.closed = true
	j.stop()
	for _, u := range j.unanswered {
		u.answer <- errGone
	}
	delete(jobs, j.JobId)
}

func (j *job) cancel(deadline *timestamppb.Timestamp) {
	if j.cancelled {
		return
	}
	j.cancelled = true
	j.stop()
	left := 2 * time.Second // at least: the deadline is a time of another clock
	if until := time.Until(deadline.AsTime()); until > left {
		left = until
	}
	time.AfterFunc(left, func() { // who does not listen is not waited for
		mu.Lock()
		defer mu.Unlock()
		j.end(stopped())
	})
}

func acked(j *job, a *pb.ReportAck) {
	switch a.Result {
	case pb.ReportResult_REPORT_RESULT_LEASE_LOST:
		j.lose()
	case pb.ReportResult_REPORT_RESULT_REJECTED:
		j.settle(a.Number, refused(a.Message))
	case pb.ReportResult_REPORT_RESULT_CANCELLED:
		j.cancel(a.Deadline)
		if a.Seq == 0 {
			j.settle(a.Number, errGone)
			return
		}
		fallthrough
	default:
		j.settle(a.Number, nil)
	}
}

// welcomed settles the leases that Hello named, and sends again what is not stored.
func welcomed(welcome *pb.Welcome) {
	resumed := map[string]*pb.ResumedLease{}
	for _, r := range welcome.Resumed {
		resumed[r.JobId] = r
	}
	for id, j := range jobs {
		r := resumed[id]
		if r == nil {
			j.lose()
			continue
		}
		if r.CancelRequested != nil {
			j.cancel(r.CancelRequested.Deadline)
		}
		for _, u := range j.unanswered {
			if u.report.Number <= r.LastReport {
				j.settle(u.report.Number, nil)
			} else {
				say(&pb.WorkRequest{Message: &pb.WorkRequest_Report{Report: u.report}})
			}
		}
	}
}

// said does what the engine says; what it does not know, it ignores.
func said(m *pb.WorkResponse) {
	mu.Lock()
	defer mu.Unlock()
	heard = time.Now()
	switch m := m.Message.(type) {
	case *pb.WorkResponse_Assignment:
		assigned(m.Assignment)
	case *pb.WorkResponse_Ack:
		if j := jobs[m.Ack.JobId]; j != nil && j.LeaseToken == m.Ack.LeaseToken {
			acked(j, m.Ack)
		}
	case *pb.WorkResponse_Cancel:
		if j := jobs[m.Cancel.JobId]; j != nil && j.LeaseToken == m.Cancel.LeaseToken {
			j.cancel(m.Cancel.GetRequest().GetDeadline())
		}
	case *pb.WorkResponse_LeaseLost:
		if j := jobs[m.LeaseLost.JobId]; j != nil && j.LeaseToken == m.LeaseLost.LeaseToken {
			j.lose()
		}
	case *pb.WorkResponse_Drain:
		leaveAt = m.Drain.GetDeadline().AsTime().Add(-time.Second)
	}
}
