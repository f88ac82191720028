package meta

import "os"

func selfPath() string {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return self
}
