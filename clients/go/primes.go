//go:build !conformance

package main

import (
	"encoding/json"

	pb "tidegate.example/v1"
)

var kinds = map[string]kind{"primes-go": {
	description: "Counts the primes below a number.",
	schema:      `{"type": "object", "required": ["below"], "properties": {"below": {"type": "integer", "minimum": 0}}}`,
	example:     `{"below": 1000000}`,
	run:         countPrimes,
}}

// place is where a count stands; its JSON text is the checkpoint.
type place struct{ Next, Found uint64 }

// countPrimes tries every number. It saves its place after every slice, so that the next attempt, on whatever machine,
// counts no number twice and leaves none out.
func countPrimes(j *job) (any, error) {
	const slice = 20000
	var input struct{ Below uint64 }
	if err := json.Unmarshal([]byte(j.InputJson), &input); err != nil {
		return nil, failure{"input_invalid", err.Error(), false}
	}
	at := place{Next: 2}
	if j.Checkpoint != nil {
		if err := json.Unmarshal(j.Checkpoint.Data, &at); err != nil {
			return nil, failure{"checkpoint_invalid", err.Error(), false}
		}
	}
	for at.Next < input.Below {
		if j.ctx.Err() != nil {
			return nil, errGone
		}
		for end := at.Next + slice; at.Next < end && at.Next < input.Below; at.Next++ {
			if isPrime(at.Next) {
				at.Found++
			}
		}
		done, total := at.Next, input.Below
		progress := &pb.Progress{Done: &done, Total: &total, Unit: "numbers"}
		if err := j.report(&pb.Report{Body: &pb.Report_Progress{Progress: progress}}); err != nil {
			return nil, err
		}
		data, _ := json.Marshal(at)
		point := &pb.Checkpoint{Name: "counted", Data: data}
		if err := j.report(&pb.Report{Body: &pb.Report_Checkpoint{Checkpoint: point}}); err != nil {
			return nil, err // it returns once the place is stored
		}
	}
	return map[string]uint64{"primes": at.Found}, nil
}

func isPrime(n uint64) bool {
	for d := uint64(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return true
}
