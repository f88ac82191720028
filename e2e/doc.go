// Package e2e tests Trivet from the outside: the real program, real clients,
// real filesystems, killed and restarted. Its tests are in the _test files;
// docs/testing.md says what each proves. They need root and the tools that
// scripts/install brings, and say so when they skip.
//
// Environment:
//
//	TRIVET_LONG=1          the long version of every test
//	TRIVET_BIN=PATH        the program to test; built from this tree when unset
//	TRIVET_STANDIN=nbdkit  test the tests: nbdkit's file plugin in Trivet's place
//	TRIVET_SEED=N          repeat the random choices of a run that printed N
package e2e
