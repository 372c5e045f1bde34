//go:build conformance

// The conformance worker, instead of the kind primes-go: runs the scripts of tests/conformance (see its README.md).
package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "tidegate.example/v1"
)

var kinds = map[string]kind{"conformance": {
	description: "Follows a script.", schema: `{"type": "object"}`, example: `{"steps": []}`, run: follow}}

var output sync.Mutex

func line(j *job, at string, more map[string]string) {
	fields := map[string]any{"job": j.JobId, "attempt": j.Attempt, "at": at}
	for key, value := range more {
		fields[key] = value
	}
	text, _ := json.Marshal(fields)
	output.Lock()
	defer output.Unlock()
	fmt.Fprintf(os.Stdout, "%s\n", text)
}

func follow(j *job) (any, error) {
	line(j, "begin", nil)
	defer line(j, "end", nil)
	var script struct{ Steps []map[string]json.RawMessage }
	if err := json.Unmarshal([]byte(j.InputJson), &script); err != nil {
		return nil, failure{"input_invalid", err.Error(), false}
	}
	for _, step := range script.Steps {
		for name, raw := range step {
			end, result, err := do(j, name, raw)
			var no refused
			if errors.As(err, &no) {
				line(j, "rejected", map[string]string{"message": string(no)})
			} else if end || err != nil {
				return result, err
			}
		}
	}
	return nil, nil
}

// do runs one step; true when the script ends with it.
func do(j *job, name string, raw json.RawMessage) (bool, any, error) {
	var number int
	var text string
	json.Unmarshal(raw, &number)
	json.Unmarshal(raw, &text)
	millis := time.Duration(number) * time.Millisecond
	switch name {
	case "progress":
		var p struct {
			Percent       *float64
			Done, Total   string
			Unit, Message string
			Step, Steps   *uint32
		}
		json.Unmarshal(raw, &p)
		progress := &pb.Progress{Percent: p.Percent, Unit: p.Unit, Message: p.Message, Step: p.Step, Steps: p.Steps}
		progress.Done, progress.Total = count(p.Done), count(p.Total)
		return false, nil, j.report(&pb.Report{Body: &pb.Report_Progress{Progress: progress}})
	case "log":
		var l struct{ Text, Level, Source string }
		json.Unmarshal(raw, &l)
		level := pb.LogLevel(pb.LogLevel_value["LOG_LEVEL_"+l.Level])
		if l.Level == "" {
			level = pb.LogLevel_LOG_LEVEL_INFO
		}
		return false, nil, j.report(logLine(level, l.Source, l.Text))
	case "checkpoint":
		var c struct{ Name, Base64 string }
		json.Unmarshal(raw, &c)
		data, _ := base64.StdEncoding.DecodeString(c.Base64)
		return false, nil, checkpoint(j, c.Name, data)
	case "custom":
		var c struct {
			Name  string
			Value json.RawMessage
		}
		json.Unmarshal(raw, &c)
		return false, nil, custom(j, c.Name, string(c.Value))
	case "resumed":
		resumed := map[string]any{"attempt": j.Attempt, "checkpoint": nil}
		if c := j.Checkpoint; c != nil {
			resumed["checkpoint"] = map[string]any{"name": c.Name, "base64": base64.StdEncoding.EncodeToString(c.Data)}
		}
		value, _ := json.Marshal(resumed)
		return false, nil, custom(j, "resumed", string(value))
	case "oversized":
		var o struct{ Checkpoint, Custom, Log, Result int }
		json.Unmarshal(raw, &o)
		switch {
		case o.Checkpoint > 0:
			return false, nil, checkpoint(j, "big", make([]byte, o.Checkpoint))
		case o.Custom > 0:
			return false, nil, custom(j, "big", `"`+strings.Repeat("x", o.Custom)+`"`)
		case o.Log > 0:
			return false, nil, j.report(logLine(pb.LogLevel_LOG_LEVEL_INFO, "", strings.Repeat("x", o.Log)))
		}
		return true, strings.Repeat("x", o.Result), nil
	case "print":
		line(j, "print", map[string]string{"text": text})
	case "sleep":
		select {
		case <-time.After(millis):
		case <-j.ctx.Done():
			return true, nil, errGone
		}
	case "await_file":
		for {
			if _, err := os.Stat(text); err == nil {
				break
			} else if j.ctx.Err() != nil {
				return true, nil, errGone
			}
			time.Sleep(20 * time.Millisecond)
		}
	case "wait_stop":
		<-j.ctx.Done()
		line(j, "stopping", nil)
		return true, nil, errGone
	case "ignore_stop":
		time.Sleep(millis)
	case "busy":
		for until := time.Now().Add(millis); time.Now().Before(until); {
		}
	case "flood":
		var f struct{ Logs, Bytes int }
		json.Unmarshal(raw, &f)
		for n := 0; n < f.Logs; n++ {
			text := fmt.Sprintf("%d ", n)
			text += strings.Repeat("x", f.Bytes-len(text))
			if err := j.report(logLine(pb.LogLevel_LOG_LEVEL_INFO, "", text)); err != nil {
				return true, nil, err
			}
		}
	case "progress_flood":
		for n := 1; n <= number; n++ {
			done, total := uint64(n), uint64(number)
			report := &pb.Report{Body: &pb.Report_Progress{Progress: &pb.Progress{Done: &done, Total: &total}}}
			if err := j.report(report); err != nil {
				return true, nil, err
			}
		}
	case "fail":
		var f struct {
			Code, Message string
			Retryable     bool
		}
		json.Unmarshal(raw, &f)
		return true, nil, failure{f.Code, f.Message, f.Retryable}
	case "throw":
		panic(text)
	case "complete":
		return true, raw, nil
	default:
		return true, nil, failure{"input_invalid", "no such step: " + name, false}
	}
	return false, nil, nil
}

func count(decimal string) *uint64 {
	if n, err := strconv.ParseUint(decimal, 10, 64); err == nil {
		return &n
	}
	return nil
}

func logLine(level pb.LogLevel, source, text string) *pb.Report {
	return &pb.Report{Body: &pb.Report_Log{Log: &pb.Log{Level: level, Source: source, Text: text}}}
}

func checkpoint(j *job, name string, data []byte) error {
	return j.report(&pb.Report{Body: &pb.Report_Checkpoint{Checkpoint: &pb.Checkpoint{Name: name, Data: data}}})
}

func custom(j *job, name, json string) error {
	return j.report(&pb.Report{Body: &pb.Report_Custom{Custom: &pb.Custom{Name: name, Json: json}}})
}
