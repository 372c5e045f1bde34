// What a handler says about its job: refused here if the engine would refuse it, numbered, kept until it is answered.
package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	pb "tidegate.example/v1"
)

// failure is an error with a code; any other error of a handler is the retryable failure "error".
type failure struct {
	code, message string
	retryable     bool
}

func (f failure) Error() string { return f.message }

// refused says that one report broke a rule; the job may go on.
type refused string

func (r refused) Error() string { return string(r) }

const reserved = " state progress log checkpoint complete failed cancelled connected gap goodbye error open message retry close "

var eventName = regexp.MustCompile(`^[a-z][a-z0-9._-]{0,63}$`)

// report says something about a job; a checkpoint and a custom event return when the engine has stored them.
func (j *job) report(r *pb.Report) error {
	mu.Lock()
	err := refuse(r)
	mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case j.window <- struct{}{}:
	case <-j.ctx.Done():
		return errGone
	}
	mu.Lock()
	if j.closed {
		mu.Unlock()
		return errGone
	}
	answer := j.send(r)
	mu.Unlock()
	if r.GetCheckpoint() == nil && r.GetCustom() == nil {
		return nil
	}
	return <-answer
}

// refuse cuts what may be cut, and says what the engine would refuse.
func refuse(r *pb.Report) error {
	switch b := r.Body.(type) {
	case *pb.Report_Log:
		if b.Log.Text = strings.ToValidUTF8(b.Log.Text, "\ufffd"); len(b.Log.Text) > 16384 {
			b.Log.Text = strings.ToValidUTF8(b.Log.Text[:16384], "") // on a character's boundary
		}
	case *pb.Report_Checkpoint:
		b.Checkpoint.Size = uint32(len(b.Checkpoint.Data))
		return fits(len(b.Checkpoint.Data), limits.GetMaxCheckpointBytes(), 65536)
	case *pb.Report_Custom:
		if !eventName.MatchString(b.Custom.Name) || strings.Contains(reserved, " "+b.Custom.Name+" ") {
			return refused("no event can have this name")
		}
		return fits(len(b.Custom.Json), limits.GetMaxCustomBytes(), 65536)
	}
	return nil
}

func fits(size int, limit, otherwise uint32) error {
	if limit == 0 {
		limit = otherwise
	}
	if size > int(limit) {
		return refused(fmt.Sprintf("%d bytes; the engine takes %d", size, limit))
	}
	return nil
}

// send numbers a report, keeps it, and sends it if there is a stream.
func (j *job) send(r *pb.Report) chan error {
	j.number++
	r.JobId, r.LeaseToken, r.Number = j.JobId, j.LeaseToken, j.number
	j.unanswered = append(j.unanswered, unanswered{r, make(chan error, 1)})
	say(&pb.WorkRequest{Message: &pb.WorkRequest_Report{Report: r}})
	return j.unanswered[len(j.unanswered)-1].answer
}

func say(m *pb.WorkRequest) {
	if out == nil {
		return
	}
	select {
	case out <- m:
	default:
		hangUp() // no room although the windows are kept: what is unanswered is sent again
	}
}

// end sends the report that ends the job, once.
func (j *job) end(r *pb.Report) {
	if !j.closed {
		j.closed = true
		j.send(r)
	}
}

// settle gives a report its answer.
func (j *job) settle(number uint64, err error) {
	for i, u := range j.unanswered {
		if u.report.Number != number {
			continue
		}
		j.unanswered = append(j.unanswered[:i:i], j.unanswered[i+1:]...)
		u.answer <- err
		_, refusable := u.report.Body.(*pb.Report_Complete)
		if !j.closed || u.report.Number < j.number {
			<-j.window
		} else if refusable && errors.Is(err, errGone) { // called off before the end was stored
			j.send(stopped())
		} else if refusable && err != nil {
			j.send(failed(failure{"result_too_large", err.Error(), false}))
		} else {
			delete(jobs, j.JobId)
		}
		return
	}
}
